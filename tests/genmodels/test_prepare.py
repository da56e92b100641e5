"""Preparing: the same bytes every time, whole or not at all, and counts that add up."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data import shard_writer
from genmodels.data.decode import Sample
from genmodels.data.fields import Record
from genmodels.data.loader import read_split
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader, paired_ids, verify
from genmodels.data.shards import open_shards
from genmodels.data.splits import Splitter


def picture(seed: int, size=(12, 12)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", {f"{'ab'[i % 2]}/{i:02d}.png": picture(i) for i in range(24)})


def config(source: Path, **values) -> DatasetConfig:
    return DatasetConfig(source=str(source), **{"image_size": 8, "shard_size": 5, "holdout": 0.25, **values})


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_input_gives_same_bytes_with_one_process_and_two(source, tmp_path):
    for num_processes in (1, 2):
        prepare("toy", config(source), tmp_path / f"out{num_processes}", tmp_path, num_processes)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


def test_the_digest_depends_on_content_and_not_on_place_time_or_name(source, tmp_path):
    first = prepare("toy", config(source), tmp_path / "out", tmp_path, 1)
    moved = source.rename(tmp_path / "moved")
    os.utime(moved / "a/00.png", ns=(0, 0))
    assert prepare("other", config(moved), tmp_path / "out2", tmp_path, 1).digest == first.digest
    (moved / "a/00.png").write_bytes(picture(99))
    assert prepare("other", config(moved), tmp_path / "out2", tmp_path, 1).digest != first.digest


def test_an_unchanged_source_is_not_read_again(source, tmp_path):
    def forbidden(done, total):
        raise AssertionError("decoded again")

    out = tmp_path / "out"
    first = prepare("toy", config(source), out, tmp_path, 1)
    assert prepare("toy", config(source), out, tmp_path, 1, forbidden) == first
    for changed in (config(source, holdout=0.3), config(source, fit="pad")):
        with pytest.raises(AssertionError, match="decoded again"):
            prepare("toy", changed, out, tmp_path, 1, forbidden)
    next(out.glob("train-8-*.tar")).unlink()
    assert prepare("toy", config(source), out, tmp_path, 1) == first
    verify(out)


def test_the_manifest_tells_where_every_sample_came_from(source, tmp_path):
    spec = prepare("toy", config(source), tmp_path / "out", tmp_path, 1)
    rows = pq.read_table(tmp_path / "out/manifest.parquet").to_pylist()
    assert len(rows) == 24 == spec.num_train + spec.num_test and spec.classes == ("a", "b")
    for row in rows:
        data = (source / row["file"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        assert (row["width"], row["height"]) == (12, 12)
        assert spec.classes[row["label"]] == row["class"] == row["file"][0]


def test_a_sample_keeps_its_split_when_others_are_added(source, tmp_path):
    def splits() -> dict[str, str]:
        prepare("toy", config(source), tmp_path / "out", tmp_path, 1)
        rows = pq.read_table(tmp_path / "out/manifest.parquet").to_pylist()
        return {row["file"]: row["split"] for row in rows}

    before = splits()
    write(source, {f"a/new{i}.png": picture(100 + i) for i in range(20)})
    assert before.items() <= splits().items()
    assert set(before.values()) == {"train", "test"}


def sample(sha: str, split: str | None = None) -> Sample:
    return Sample(Record(sha, sha, split=split), (), sha, 1, 1, 1, {})


def numbers(fractions: list[float]) -> list[Sample]:
    return [sample(f"{int(fraction * 2**32):08x}" + "0" * 56) for fraction in fractions]


def assign_splits(samples: list[Sample], holdout: float) -> list[tuple[str, Sample]]:
    splitter = Splitter(holdout)
    return [each for sample in samples for each in splitter.add(sample)] + splitter.end()


@pytest.mark.parametrize("holdout", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("fractions", [[0.9, 0.8], [0.6, 0.7, 0.95, 0.9], [0.1, 0.2], [0.02, 0.9, 0.03]])
def test_two_images_are_one_of_each_split(fractions, holdout):
    given = numbers(fractions)
    assigned = list(assign_splits(given, holdout))
    assert Counter(sample.sha256 for _, sample in assigned) == Counter(sample.sha256 for sample in given)
    assert {split for split, _ in assigned} == {"train", "test"}
    test = [int(sample.sha256[:8], 16) for split, sample in assigned if split == "test"]
    assert max(test) < min(int(sample.sha256[:8], 16) for split, sample in assigned if split == "train")


@pytest.mark.parametrize("fractions", [[0.3, 0.2, 0.3, 0.2], [0.2, 0.2, 0.3], [0.01, 0.02, 0.02, 0.01], [0.2, 0.2]])
def test_copies_of_the_image_that_is_held_out_go_with_it(fractions):
    sides: dict[str, set[str]] = {}
    for split, each in assign_splits(numbers(fractions), 0.1):
        sides.setdefault(each.sha256, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == ({"train", "test"} if len(set(fractions)) > 1 else {"train"})


def test_one_image_trains_and_no_holdout_holds_nothing_out():
    assert [split for split, _ in assign_splits(numbers([0.01]), 0.9)] == ["train"]
    assert [split for split, _ in assign_splits(numbers([0.0, 0.5]), 0.0)] == ["train", "train"]


def test_the_split_that_a_source_names_stands():
    given = [sample("00" * 32, "train"), sample("ff" * 32, "test")]
    assert [split for split, _ in assign_splits(given, 0.5)] == ["train", "test"]


def test_hostile_images_are_counted_by_reason_and_the_run_goes_on(source, tmp_path):
    write(
        source,
        {
            "a/empty.png": b"",
            "a/text.png": b"no image",
            "a/cut.png": picture(0, (99, 99))[:5000],
            "a/big.png": picture(0, (60, 60)),
            "a/notes.txt": b"notes",
            "a/odd name\n.png": picture(50),
            "b/copy.png": picture(1),
            "b/tiny.png": picture(3, (1, 1)),
        },
    )
    (source / "a/out.png").symlink_to("/etc/passwd")
    wanted = config(source, max_pixels=3000, max_reject_fraction=0.5)
    spec = prepare("toy", wanted, tmp_path / "out", tmp_path, 1)
    counts = open_shards(tmp_path / "out").counts
    reasons = {
        "empty file": 1,
        "not an image": 1,
        "more than 3000 pixels": 2,
        "not an image file": 1,
        "link out of the folder": 1,
    }
    assert counts == {
        "found": 33,
        "accepted": 27,
        "rejected": 6,
        "rejects": reasons,
        "duplicates": 1,
        "upscaled": 1,
    }
    rejects = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert Counter(reject["reason"] for reject in rejects) == reasons
    assert spec.num_train + spec.num_test == 27
    verify(tmp_path / "out")


def test_too_many_rejects_stop_with_the_most_frequent_reasons(source, tmp_path):
    write(source, {f"a/{i}.png": b"text" for i in range(4)} | {"a/0.gif": b""})
    with pytest.raises(ValueError, match=r"5 of 29 .* 0\.1 \(not an image: 4; empty file: 1\)$"):
        prepare("toy", config(source), tmp_path / "out", tmp_path, 1)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_source_without_a_usable_image_is_refused(tmp_path):
    folder = write(tmp_path / "bad", {"a.png": b"text"})
    with pytest.raises(ValueError, match="no usable image.*not an image: 1"):
        prepare("toy", config(folder, max_reject_fraction=1), tmp_path / "out", tmp_path, 1)


def test_a_failure_in_the_middle_keeps_the_old_data(source, tmp_path):
    def fail(done, total):
        if done == 20:
            raise RuntimeError("stop")

    out = tmp_path / "out"
    prepare("toy", config(source), out, tmp_path, 1)
    before = contents(out)
    with pytest.raises(RuntimeError, match="stop"):
        prepare("toy", config(source, fit="pad"), out, tmp_path, 1, fail)
    assert contents(out) == before and [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_a_killed_run_keeps_the_old_data_and_blocks_nobody(source, tmp_path):
    out = tmp_path / "out"
    prepare("toy", config(source), out, tmp_path, 1)
    before = contents(out)
    program = f"""
        import os, signal
        from pathlib import Path
        from genmodels.config import DatasetConfig
        from genmodels.data.prepare import prepare
        changed = DatasetConfig(source={str(source)!r}, image_size=16, shard_size=5)
        kill = lambda done, total: done == 20 and os.kill(os.getpid(), signal.SIGKILL)
        prepare("toy", changed, Path({str(out)!r}), Path("/"), 1, kill)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".out.partial").exists() and contents(out) == before
    assert prepare("toy", config(source, image_size=16), out, tmp_path, 1).image_size == 16
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
    verify(out)


KILLED = """
    import os, signal
    from pathlib import Path
    from genmodels.config import DatasetConfig
    from genmodels.data import prepare
    prepare.SAVE_EVERY = 0.0
    config = DatasetConfig(source={source!r}, image_size=8, shard_size=5, holdout=0.25, duplicates="drop")
    kill = lambda done, total: done == {after} and os.kill(os.getpid(), signal.SIGKILL)
    prepare.prepare("toy", config, Path({out!r}), Path("/"), {num_processes}, kill)
"""


def killed_run(source: Path, out: Path, after: int, num_processes: int = 1) -> None:
    program = KILLED.format(source=str(source), out=str(out), after=after, num_processes=num_processes)
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=600)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("layout", "after"), [("classes", 9), ("classes", 26), ("domains", 17)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(source, tmp_path, layout, after):
    write(source, {"b/copy.png": picture(3), "b/broken.png": picture(5)[:60]})
    if layout == "domains":
        (source / "a").rename(source / "trainA"), (source / "b").rename(source / "trainB")
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare("toy", config(source, duplicates="drop"), whole, tmp_path, 1)
    killed_run(source, out, after)
    seen: list[int] = []
    prepare("toy", config(source, duplicates="drop"), out, tmp_path, 1, lambda done, total: seen.append(done))
    assert contents(out) == contents(whole)
    assert min(seen, default=27) in (after, after + 1)  # the image of the kill itself may come again
    verify(out)


def test_a_killed_run_of_several_processes_goes_on(source, tmp_path):
    prepare("toy", config(source, duplicates="drop"), tmp_path / "whole", tmp_path, 1)
    killed_run(source, tmp_path / "out", 12, num_processes=2)
    prepare("toy", config(source, duplicates="drop"), tmp_path / "out", tmp_path, 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_a_killed_run_left_of_another_source_is_not_used(source, tmp_path):
    killed_run(source, tmp_path / "out", 20)
    (source / "a/00.png").write_bytes(picture(99))
    seen: list[int] = []
    prepare("toy", config(source, duplicates="drop"), tmp_path / "out", tmp_path, 1, lambda done, _: seen.append(done))
    assert seen[0] == 1
    prepare("toy", config(source, duplicates="drop"), tmp_path / "whole", tmp_path, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_journal_cut_off_in_a_power_failure_goes_on_from_an_earlier_mark(source, tmp_path, cut):
    prepare("toy", config(source, duplicates="drop"), tmp_path / "whole", tmp_path, 1)
    killed_run(source, tmp_path / "out", 20)
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    prepare("toy", config(source, duplicates="drop"), tmp_path / "out", tmp_path, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_random_crop_is_the_same_each_time_and_differs_between_images(tmp_path):
    folder = write(tmp_path / "wide", {f"{i}.png": picture(0, (40, 8)) for i in range(6)})
    for num_processes in (1, 2):
        prepare("toy", config(folder, fit="random_crop"), tmp_path / f"out{num_processes}", tmp_path, num_processes)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    images = ShardReader(tmp_path / "out1", "train", 8).read(np.arange(3))
    assert len({image.tobytes() for image in images}) > 1


def test_copies_are_counted_and_dropped_by_choice(source, tmp_path):
    write(source, {"a/copy1.png": picture(3), "b/copy2.png": picture(3), "b/notes.txt": b"x"})
    for choice, accepted, duplicates in (("keep", 26, 2), ("drop", 24, 0)):
        prepare("toy", config(source, duplicates=choice), tmp_path / "out", tmp_path, 1)
        counts = open_shards(tmp_path / "out").counts
        assert (counts["accepted"], counts["duplicates"]) == (accepted, duplicates)
        assert counts["found"] == 27 == counts["accepted"] + counts["rejected"]
    assert counts["rejects"] == {"copy of another image": 2, "not an image file": 1}


def test_a_run_killed_between_its_renames_is_undone(source, tmp_path):
    out = tmp_path / "out"
    spec = prepare("toy", config(source), out, tmp_path, 1)
    out.rename(tmp_path / ".out.replaced")
    assert prepare("toy", config(source), out, tmp_path, 1) == spec
    assert not (tmp_path / ".out.replaced").exists()


def test_two_runs_into_one_folder_are_refused(source, tmp_path):
    def second(done, total):
        prepare("toy", config(source), tmp_path / "out", tmp_path, 1)

    with pytest.raises(ValueError, match="another process prepares"):
        prepare("toy", config(source), tmp_path / "out", tmp_path, 1, second)


def test_a_folder_that_is_no_data_set_is_never_replaced(source, tmp_path):
    precious = write(tmp_path / "home", {"letter.txt": b"dear"})
    with pytest.raises(ValueError, match="is no data set"):
        prepare("toy", config(source), precious, tmp_path, 1)
    assert (precious / "letter.txt").read_bytes() == b"dear"


def test_a_full_disk_names_path_and_bytes_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(self, blob):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer._Tar, "append", full)
    with pytest.raises(OSError, match=r"out: no room, needs up to [\d,]+ bytes, [\d,]+ are free") as error:
        prepare("toy", config(source), tmp_path / "out", tmp_path, 1)
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.glob("*out*")] == []


def test_num_images_takes_some_of_every_class_and_domain(tmp_path):
    files = {f"train{domain}/{i}.png": picture(i) for domain in "AB" for i in range(30)}
    spec = prepare("toy", config(write(tmp_path / "s", files), num_images=20), tmp_path / "out", tmp_path, 1)
    assert spec.num_train + spec.num_test == 20 and spec.domains == ("A", "B")
    for domain in "AB":
        assert all(ShardReader(tmp_path / "out", split, 8, domain).num for split in ("train", "test"))


@pytest.mark.parametrize(("num", "expected"), [(10, (9, 1)), (33, (30, 3)), (2, (1, 1)), (99, (60, 6))])
def test_num_images_keeps_the_share_of_the_source_s_own_split(tmp_path, num, expected):
    files = {f"{split}/{i}.png": picture(i) for split, n in (("train", 60), ("test", 6)) for i in range(n)}
    spec = prepare("toy", config(write(tmp_path / "s", files), num_images=num), tmp_path / "out", tmp_path, 1)
    assert (spec.num_train, spec.num_test) == expected


@pytest.mark.parametrize("around", ["", "pictures/"])
def test_test_images_of_two_domains_pair_by_name(tmp_path, around):
    names = ["one", "two words", "drei", "ü"]
    files = {f"{around}test{domain}/{name}.png": picture(i) for domain in "AB" for i, name in enumerate(names)}
    files |= {f"{around}train{domain}/{i}.png": picture(i) for domain in "AB" for i in range(3)} | {
        f"{around}testA/alone.png": picture(7)
    }
    prepare("toy", config(write(tmp_path / "s", files)), tmp_path / "out", tmp_path, 1)
    a, b = (ShardReader(tmp_path / "out", "test", 8, domain) for domain in "AB")
    ids_a, ids_b = paired_ids(a, b)
    assert len(ids_a) == 4 and (a.num, b.num) == (5, 4)
    assert (a.read(ids_a) == b.read(ids_b)).all()


def test_equal_numbers_alone_make_no_pairs(tmp_path):
    """Held-out images of two domains that are numbered alike meet by chance; those are not aligned."""
    files = {f"train{domain}/{i:04}.png": picture(1000 * (domain == "B") + i) for domain in "AB" for i in range(120)}
    prepare("toy", config(write(tmp_path / "s", files)), tmp_path / "out", tmp_path, 1)
    a, b = (ShardReader(tmp_path / "out", "test", 8, domain) for domain in "AB")
    assert set(map(lambda file: file[-8:], a.files)) & set(map(lambda file: file[-8:], b.files))
    batch, paired = read_split(tmp_path / "out", "test", 8, 100)
    assert not paired and (len(batch["image_A"]), len(batch["image_B"])) == (a.num, b.num)
    assert not read_split(tmp_path / "out", "train", 8, 100)[1]


def test_shards_mix_the_classes(tmp_path):
    files = {f"{name}/{i}.png": picture(i) for name in "abcd" for i in range(16)}
    prepare("toy", config(write(tmp_path / "s", files), holdout=0, shard_size=16), tmp_path / "out", tmp_path, 1)
    labels = ShardReader(tmp_path / "out", "train", 8).labels.reshape(4, 16)
    assert all(len(set(shard)) >= 3 for shard in labels.tolist())


def test_sprites_bring_every_field(tmp_path):
    made = DatasetConfig(source="sprites", num_images=40, image_size=16, shard_size=16)
    spec = prepare("sprites", made, tmp_path / "out", tmp_path, 1)
    assert spec.num_train + spec.num_test == 40 and spec.vocabulary and spec.num_parts and spec.attributes
    reader = ShardReader(tmp_path / "out", "train", 16)
    assert reader.parts.shape == (reader.num, spec.num_parts, 4)
    assert set(np.unique(reader.attributes)) <= {0.0, 1.0} and all(reader.captions)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["spec"]["name"] == "sprites"
