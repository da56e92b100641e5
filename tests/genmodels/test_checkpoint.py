"""Training states and exports on disk: whole or not there, and never executed."""

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genmodels import checkpoint, export
from genmodels.data.fields import DataSpec
from genmodels.files import replace_folder, write_atomic, write_json
from genmodels.model import Progress, Stage, model_class

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


def test_the_latest_state_comes_back(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    for number in (8, 16, 100_000):
        checkpoint.save(tmp_path, number, state(number), keep=9)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded["step"] == 100_000
    assert torch.equal(loaded["weights"]["w"], state(100_000)["weights"]["w"])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_all_but_the_latest_are_pruned(tmp_path, keep):
    for number in range(1, 6):
        checkpoint.save(tmp_path, number, state(number), keep)
    assert saved(tmp_path) == list(range(6 - keep, 6))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    paths = [checkpoint.save(folder, number, state(number), 3) for number in (1, 2, 3)]
    num_damaged = data.draw(st.integers(1, 3))
    for path in paths[3 - num_damaged :]:
        damage(path, data)
    with pytest.warns(UserWarning, match="is damaged .*; falling back to the one before") as warned:
        loaded = checkpoint.load_latest(folder)
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


def test_a_whole_state_warns_of_nothing(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.load_latest(tmp_path)["step"] == 1


@pytest.mark.parametrize("place", ["torch.save", "genmodels.checkpoint.write_json", "os.replace"])
def test_a_crash_while_writing_leaves_the_states_before(tmp_path, monkeypatch, place):
    checkpoint.save(tmp_path, 1, state(1), 1)

    def crash(*arguments, **_):
        if place == "torch.save":
            Path(arguments[1]).write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(place, crash)
        checkpoint.save(tmp_path, 2, state(2), 1)
    assert saved(tmp_path) == [1]
    assert checkpoint.load_latest(tmp_path)["step"] == 1


def test_a_killed_writer_s_rubble_is_not_taken_for_a_state(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), 2)
    rubble = tmp_path / ".000000000002.4242.tmp"
    rubble.mkdir()
    (rubble / "state.pt").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path)["step"] == 1


def test_a_state_that_would_run_code_is_refused(tmp_path):
    path, hacked = checkpoint.save(tmp_path, 1, state(1), 2), tmp_path / "hacked"
    torch.save({"step": Bomb(hacked)}, path / "state.pt")
    digest = checkpoint.sha256_file(path / "state.pt")
    write_json(path / "manifest.json", {"sha256": digest})  # an attacker can write a manifest too
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        checkpoint.load_latest(tmp_path)
    assert not hacked.exists()


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
    config["sha256"] = checkpoint.sha256_file(exported / "model.safetensors")
    (exported / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="(?i)header"):
        export.load(exported)
    assert not hacked.exists()


def test_the_card_says_what_it_is(exported):
    card = (exported / "README.md").read_text()
    for word in ("vae on toy", "16x16", "after 8 training images", "run: vae-1", "latent_dim: 2"):
        assert word in card
    assert json.loads((exported / "config.json").read_text())["sha256"] in card
