"""Training states and exports on disk: whole or not there, and never executed."""

import errno
import json
import os
import pickle
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genmodels import checkpoint, export, files
from genmodels.checkpoint import Checkpoints
from genmodels.data import remote
from genmodels.data.fields import DataSpec
from genmodels.files import replace_folder, write_atomic, write_json
from genmodels.model import Metric, Progress, Stage, model_class

SPEC = DataSpec("toy", 3, 16, (4, 8, 16), num_train=8, num_test=0)


def state(number: int) -> dict:
    return {"step": number, "weights": {"w": torch.full((100,), float(number))}}


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def save(place: Path | str, *numbers: int, keep: int = 9) -> list[Path]:
    """Saves a state a number; where they lie in a folder."""
    checkpoints = Checkpoints(place, keep)
    for number in numbers:
        checkpoints.save(number, state(number))
    checkpoints.wait()
    return [Path(place) / f"{number:012d}" for number in numbers]


def load(place: Path | str) -> dict | None:
    return Checkpoints(place, 9).load_latest()


def test_the_latest_state_comes_back(tmp_path):
    assert load(tmp_path) is None
    save(tmp_path, 8, 16, 100_000)
    loaded = load(tmp_path)
    assert loaded["step"] == 100_000
    assert torch.equal(loaded["weights"]["w"], state(100_000)["weights"]["w"])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_all_but_the_latest_are_pruned(tmp_path, keep):
    save(tmp_path, *range(1, 6), keep=keep)
    assert saved(tmp_path) == list(range(6 - keep, 6))


@pytest.mark.parametrize(("direction", "best"), [("min", {2, 4}), ("max", {1, 3})])
def test_the_best_stay_beside_the_latest(tmp_path, direction, best):
    checkpoints = Checkpoints(tmp_path, 1, 2, Metric("score", direction))
    for number, score in enumerate([4.0, 1.0, 5.0, 2.0, float("nan"), None], 1):
        checkpoints.save(number, state(number), score)
    checkpoints.wait()
    assert set(saved(tmp_path)) == best | {6}


def test_saving_does_not_wait_for_the_disk_and_takes_the_state_of_its_moment(tmp_path, monkeypatch):
    open_disk, live = threading.Event(), state(1)
    sync = files.sync
    monkeypatch.setattr(files, "sync", lambda path: open_disk.wait(10) and sync(path))
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, live)
    live["weights"]["w"].zero_()  # the training goes on
    assert checkpoints.place.titles() == []
    open_disk.set()
    live["weights"]["w"].fill_(2)
    checkpoints.save(2, live)  # into the memory of the first, which is on disk by then
    checkpoints.wait()
    first = torch.load(tmp_path / f"{1:012d}" / "state.pt", weights_only=True)
    assert torch.equal(first["weights"]["w"], state(1)["weights"]["w"])
    assert torch.equal(load(tmp_path)["weights"]["w"], state(2)["weights"]["w"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    paths = save(folder, 1, 2, 3)
    num_damaged = data.draw(st.integers(1, 3))
    for path in paths[3 - num_damaged :]:
        damage(path, data)
    with pytest.warns(UserWarning, match="is damaged .*; falling back to the one before") as warned:
        loaded = load(folder)
    assert len(warned) == num_damaged and str(paths[-1]) in str(warned[0].message)
    assert loaded is None if num_damaged == 3 else loaded["step"] == 3 - num_damaged


def damage(path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["bit", "truncated", "state gone", "manifest gone", "manifest torn", "empty"]))
    file = path / "state.pt"
    content = bytearray(file.read_bytes())
    if kind == "bit":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
    elif kind == "truncated":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "state gone":
        file.unlink()
    elif kind == "manifest gone":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text('{"sha256": "ab' if kind == "manifest torn" else "{}")


def test_what_was_found_damaged_does_not_outlive_what_is_saved_after_it(tmp_path):
    """Training goes on from before it: its next states have fewer images, and are the ones to keep."""
    _, damaged = save(tmp_path, 10, 20)
    (damaged / "state.pt").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.load_latest()["step"] == 10
    checkpoints.save(15, state(15))
    checkpoints.wait()
    assert saved(tmp_path) == [15] and load(tmp_path)["step"] == 15


@pytest.mark.parametrize("fault", [PermissionError(), remote.Outage("away"), OSError(errno.ENOSPC, "full")])
def test_a_state_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, fault, monkeypatch):
    save(tmp_path, 10, 20)

    def fail(path):
        raise fault

    monkeypatch.setattr(checkpoint, "sha256_file", fail)
    with pytest.raises(type(fault)):
        load(tmp_path)
    assert saved(tmp_path) == [10, 20]


def test_a_whole_state_warns_of_nothing(tmp_path):
    save(tmp_path, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path)["step"] == 1


@pytest.mark.parametrize("place", ["torch.save", "genmodels.checkpoint.write_json", "os.replace"])
def test_a_crash_while_writing_leaves_the_states_before_and_is_told(tmp_path, monkeypatch, place):
    save(tmp_path, 1)

    def crash(*arguments, **_):
        if place == "torch.save":
            arguments[1].write(b"half")
        raise OSError("the disk is gone")

    checkpoints = Checkpoints(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(place, crash)
        checkpoints.save(2, state(2))
        while True:
            checkpoints.check()
            time.sleep(0.01)
    assert saved(tmp_path) == [1]
    assert load(tmp_path)["step"] == 1


def test_a_killed_writer_s_rubble_is_not_taken_for_a_state_and_goes(tmp_path):
    save(tmp_path, 1)
    rubble = tmp_path / ".000000000002.4242.tmp"
    rubble.mkdir()
    (rubble / "state.pt").write_bytes(b"half")
    assert load(tmp_path)["step"] == 1
    assert saved(tmp_path) == [1]


def test_a_state_that_would_run_code_is_refused(tmp_path):
    (path,), hacked = save(tmp_path, 1), tmp_path / "hacked"
    torch.save({"step": Bomb(hacked)}, path / "state.pt")
    digest = files.sha256_file(path / "state.pt")
    write_json(path / "manifest.json", {"sha256": digest})  # an attacker can write a manifest too
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        load(tmp_path)
    assert not hacked.exists()


def test_a_full_disk_is_named_with_what_was_needed_and_the_state_before_stays(small_disk):
    save(small_disk / "checkpoints", 1)
    big = {"step": 2, "weights": torch.zeros(4_000_000)}
    checkpoints = Checkpoints(small_disk / "checkpoints", 1)
    checkpoints.save(2, big)
    with pytest.raises(
        OSError, match=r"no room for a checkpoint, needs 16,000,000 bytes, [\d,]+ are free.*checkpoints"
    ) as raised:
        checkpoints.wait()
    assert raised.value.errno == errno.ENOSPC
    assert saved(small_disk / "checkpoints") == [1] and load(small_disk / "checkpoints")["step"] == 1


def test_a_disk_that_fills_while_writing_loses_nothing(small_disk, monkeypatch):
    """Another program takes the room between the check and the writing."""
    save(small_disk / "checkpoints", 1)
    monkeypatch.setattr(checkpoint, "check_room", lambda *_: None)
    checkpoints = Checkpoints(small_disk / "checkpoints", 1)
    checkpoints.save(2, {"step": 2, "weights": torch.zeros(4_000_000)})
    with pytest.raises(OSError, match=r"No space left on device.*checkpoints"):
        checkpoints.wait()
    assert saved(small_disk / "checkpoints") == [1] and load(small_disk / "checkpoints")["step"] == 1


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


# --- in a store ------------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_store_keeps_the_latest_and_passes_over_the_damaged(bucket):
    url = f"{bucket}/runs/vae-1"
    assert load(url) is None
    save(url, 1, 2, 3, keep=2)
    fs, top = remote.filesystem(url)
    assert sorted(path.split("/")[-2:] for path in fs.find(top)) == [
        [f"{number:012d}", name] for number in (2, 3) for name in ("manifest.json", "state.pt")
    ]
    assert load(url)["step"] == 3
    content = bytearray(fs.cat_file(f"{top}/{3:012d}/state.pt"))
    content[100] ^= 1
    fs.pipe_file(f"{top}/{3:012d}/state.pt", bytes(content))
    with pytest.warns(UserWarning, match=f"{url}/000000000003 is damaged .sha256 differs"):
        assert load(url)["step"] == 2


@pytest.mark.cluster
def test_an_upload_without_its_manifest_is_no_checkpoint(bucket):
    url = f"{bucket}/runs/half"
    save(url, 1)
    fs, top = remote.filesystem(url)
    fs.pipe_file(f"{top}/{2:012d}/state.pt", b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(url)["step"] == 1


@pytest.mark.cluster
def test_a_checkpoint_waits_for_a_store_that_is_away(bucket, swift):
    url = f"{bucket}/runs/outage"
    save(url, 1)
    checkpoints = Checkpoints(url, 2)
    swift.kill()
    checkpoints.save(2, state(2))
    time.sleep(3)
    assert not checkpoints._writing.done()
    swift.start()
    checkpoints.wait()
    assert load(url)["step"] == 2


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_wholly_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomic(path, lambda temporary: temporary.write_text("old") and None)

    def crash(temporary):
        temporary.write_text("half of the n")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        write_atomic(path, crash)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_with_all_its_files(tmp_path):
    path = tmp_path / "folder"
    replace_folder(path, lambda temporary: (temporary / "old").touch())
    replace_folder(path, lambda temporary: (temporary / "new").touch())
    assert [file.name for file in path.iterdir()] == ["new"]

    def crash(temporary):
        (temporary / "newer").touch()
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        replace_folder(path, crash)
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path) -> Path:
    torch.manual_seed(0)
    cls = model_class("vae")
    model = cls(cls.Config(latent_dim=2, width=2), SPEC)
    export.save(tmp_path / "export", model, Progress(1, 8, Stage("train", 8, 16, 4), 1.0), {"run": "vae-1"})
    return tmp_path / "export"


def test_altered_weights_are_refused(exported):
    weights = exported / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4  # of a number, so that the file is still a valid one
    weights.write_bytes(content)
    with pytest.raises(export.ExportError, match="model.safetensors: sha256 differs from config.json"):
        export.load(exported)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(exported, name):
    (exported / name).unlink()
    with pytest.raises(export.ExportError, match=name):
        export.load(exported)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "vae"}', "5", "\x00"])
def test_a_config_that_is_none_is_refused(exported, text):
    (exported / "config.json").write_text(text)
    with pytest.raises(export.ExportError, match=str(exported)):
        export.load(exported)


def test_a_config_of_an_unknown_model_is_refused(exported):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "model": "os:system"}))
    with pytest.raises(ValueError, match="unknown model 'os:system'"):
        export.load(exported)


def test_a_pickle_in_the_folder_is_never_read(exported, tmp_path):
    hacked = tmp_path / "hacked"
    images = export.load(exported).sample(2)
    for name in ("model.pkl", "python_model.pkl", "pytorch_model.bin", "model.pt", "__init__.py"):
        (exported / name).write_bytes(pickle.dumps(Bomb(hacked)))
    assert torch.equal(export.load(exported).sample(2), images)
    assert not hacked.exists()


def test_weights_that_are_a_pickle_are_refused_unread(exported, tmp_path):
    hacked = tmp_path / "hacked"
    (exported / "model.safetensors").write_bytes(pickle.dumps(Bomb(hacked)))
    config = json.loads((exported / "config.json").read_text())
    config["sha256"] = files.sha256_file(exported / "model.safetensors")
    (exported / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="(?i)header"):
        export.load(exported)
    assert not hacked.exists()


def test_the_card_says_what_it_is(exported):
    card = (exported / "README.md").read_text()
    for word in ("vae on toy", "16x16", "after 8 training images", "run: vae-1", "latent_dim: 2"):
        assert word in card
    assert json.loads((exported / "config.json").read_text())["sha256"] in card
