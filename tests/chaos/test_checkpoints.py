"""Rows 8 and 10: full disks, damaged checkpoints."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import make_project

from chaos.harness import SHORT, Training, running
from pipelines.worker import open_checkpoints


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def assert_names_path_and_bytes(line: str, folder: Path) -> None:
    assert str(folder) in line
    assert re.search(r"needs (up to )?[\d,]+ bytes", line) or re.search(r"of [\d.]+ MB does not fit", line), line


@pytest.mark.parametrize(
    "written, step, kept",
    [("checkpoint", 61, 960), pytest.param("snapshot", 45, 640, marks=pytest.mark.chaos)],
)
def test_a_full_disk_stops_a_training_and_keeps_the_checkpoint_before(
    written, step, kept, chaos_project, small_disk, table, reference
):
    """The snapshot at the end of a stage comes before its checkpoint; a checkpoint's fault is told with the next."""
    fault = f"fill step={step} folder={small_disk} leave=65536"
    training = Training(chaos_project, f"{written}-full", SHORT, 0, (fault,), storage=small_disk)
    line = training.refused()
    (strike,) = training.strikes
    state = open_checkpoints(training.run).load_latest()  # which warns of a damaged one
    (small_disk / "ballast").unlink()
    training.finish()
    start = training.resumption(strike)
    equal = training.weights == reference(SHORT, 0).weights
    repeated = strike.num_images - start["num_images"]
    table(8, f"disk full at a {written}", f"step {step}", repeated=repeated, equal=equal)
    assert_names_path_and_bytes(line, small_disk)
    assert state["num_images"] == kept == start["num_images"]
    assert equal


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_full_disk_stops_the_writing_of_shards_and_leaves_nothing(encoding, small_disk, table, tmp_path):
    """Raw shards are refused before they are begun, the others where the disk ends."""
    dataset = {"source": "sprites", "image_size": 64, "encoding": encoding, "num_images": 4000, "pyramid": False}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"datasets": {"large": dataset}, "models": {}}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(small_disk)
    variables = {**os.environ, "GENMODELS_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.prepare", "--dataset", "large", "--num-processes", "1"]
    with running(command, variables, tmp_path / "stderr") as process:
        code = process.wait(300)
    line = (tmp_path / "stderr").read_text()
    left = [path.name for path in small_disk.iterdir() if "large" in path.name]
    table(8, f"disk full at {encoding} shards", "-", equal=not left)
    assert code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
    assert_names_path_and_bytes(line, tmp_path / "data" / "shards")
    assert not left


def test_a_full_disk_stops_the_cache_of_shards(chaos_project, small_disk, table, tmp_path, sprites_data):
    project = make_project(tmp_path, sprites_data)
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["datasets"]["sprites"]["store"] = f"file://{tmp_path}/store"
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    with (small_disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * 2**20 - 2**16)
    training = Training(project, "cache-full", SHORT, 0, settings={"compute.cache_path": small_disk})
    line = training.refused()
    table(8, "disk full at the cache", "before step 0")
    assert_names_path_and_bytes(line, small_disk)


@pytest.fixture(scope="module")
def interrupted(chaos_project) -> Training:
    """A training whose driver was killed."""
    training = Training(chaos_project, "interrupted", SHORT, 0, ("kill step=55",))
    with training.started() as process:
        assert process.wait(300) == -9, training.stderr
    return training


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [pytest.param(truncate, marks=pytest.mark.chaos), flip])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage, interrupted, table, reference):
    training = replace(interrupted, name=f"interrupted-{damage.__name__}", faults=())
    shutil.copytree(interrupted.folder, training.folder)
    newest = max((training.run.folder / "checkpoints").glob("[0-9]*"))
    damage(newest / "state.pt")
    training.finish()
    (strike,) = interrupted.strikes
    start = training.events("started")[-1]
    row = table(
        10,
        f"latest checkpoint {'truncated' if damage is truncate else 'with a flipped bit'}",
        f"step {strike.step}",
        repeated=strike.num_images - start["num_images"],
        equal=training.weights == reference(SHORT, 0).weights,
    )
    (note,) = start["notes"]
    assert str(newest) in note and "damaged" in note
    assert start["num_images"] == int(newest.name) - SHORT.checkpoint_every
    assert row.equal
