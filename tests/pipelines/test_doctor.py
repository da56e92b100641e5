"""What killed processes leave, and how the doctor clears it up; every leftover here is a real one."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from commands import call, refused
from conftest import Project, make_project
from exports import register_vae

from pipelines import doctor, registry, sample, tracking, train
from pipelines.run import Run, all_runs

LONG = ("--set", "models.vae.train.num_images=500000", "--set", "models.vae.train.checkpoint_every=1600")
TRAIN = [sys.executable, "-m", "pipelines.train", "--model", "vae"]


@pytest.fixture
def ill(sprites_data, tmp_path, monkeypatch) -> Project:
    """A project with a temporary folder of its own, so that nothing of others is looked at."""
    root = tmp_path / "ill"
    root.mkdir()
    (tmp_path / "tmp").mkdir()
    project = make_project(root, sprites_data)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in environment(project).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR again
    return project


def environment(project: Project) -> dict[str, str]:
    folder = str(project.root.parent / "tmp")
    return {"RAY_TMPDIR": folder, **project.environment, "TMPDIR": folder}


def examined(*options: str) -> tuple[int, list[str]]:
    """The doctor's exit code and lines."""
    result = call(doctor, *options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.splitlines()


def killed(project: Project, code: str) -> None:
    """Runs Python that ends with `die()`, as by a power cut."""
    program = f"import os, signal\ndef die(*_): os.kill(os.getpid(), signal.SIGKILL)\n{code}"
    assert subprocess.run([sys.executable, "-c", program], env=environment(project), check=False).returncode == -9


def files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.suffix != ".lock"}


def test_a_sound_project_has_no_findings(ill):
    assert examined() == (0, ["nothing is left of any crash"])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_killed_training_is_marked_and_goes_on_in_the_same_mlflow_run(ill, monkeypatch):
    monkeypatch.setenv("GENMODELS_ROOT", str(ill.root))
    process = subprocess.Popen([*TRAIN, *LONG], env=environment(ill), stdout=subprocess.DEVNULL)
    run = _under_way(ill, process)
    busy = files(ill.root / "data/shards")
    assert examined("--mend") == (0, ["nothing is left of any crash"])  # a living one is none of its business
    process.kill()
    process.wait()
    run_id, client = run.info["mlflow_run_id"], tracking.connected().MlflowClient()
    assert client.get_run(run_id).info.status == "RUNNING" and run.info["status"] == "running"
    before = files(ill.root)
    code, lines = examined()
    assert code == 1 and str(run.folder) in lines[0] and "pipelines/train.py --model vae --set" in lines[0]
    assert files(ill.root) == before
    code, lines = examined("--mend")
    assert code == 0 and "mended: marks it KILLED" in lines[0]
    assert client.get_run(run_id).info.status == "KILLED" and run.info["status"] == "killed"
    assert examined() == (0, ["nothing is left of any crash"]) and files(ill.root / "data/shards") == busy
    shown = max(event["num_images"] for event in run.events())
    again = subprocess.Popen([*TRAIN, *LONG], env=environment(ill), stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if max(event["num_images"] for event in run.events()) > shown:
            break
        time.sleep(0.1)
    again.terminate()
    again.wait(120)
    (only,) = all_runs(ill.runs)
    assert only.info["mlflow_run_id"] == run_id and client.get_run(run_id).info.status == "KILLED"
    assert [event["num_images"] > 0 for event in run.events() if event["type"] == "started"] == [False, True]


def _under_way(project: Project, process: subprocess.Popen) -> Run:
    for _ in range(2400):
        assert process.poll() is None
        for run in all_runs(project.runs):
            if run.info["mlflow_run_id"] and list(run.folder.glob("checkpoints/*")):
                return run
        time.sleep(0.1)
    raise AssertionError("no checkpoint in four minutes")


def test_a_running_mlflow_run_whose_folder_was_deleted_is_marked(ill, monkeypatch):
    monkeypatch.setenv("GENMODELS_ROOT", str(ill.root))
    client = tracking.connected().MlflowClient()

    def tracked(folder: Path) -> str:
        return client.create_run(tracking.experiment_id(), tags={"folder": str(folder)}).info.run_id

    gone, elsewhere = tracked(ill.runs / "vae-0-1"), tracked(ill.root.parent / "other" / "vae-0-1")
    code, lines = examined()
    assert code == 1 and len(lines) == 1 and gone in lines[0]
    assert examined("--mend")[0] == 0
    assert client.get_run(gone).info.status == "KILLED" and client.get_run(elsewhere).info.status == "RUNNING"


def test_a_moved_project_finds_its_models_when_its_store_was_mended(ill, sprites_data, monkeypatch):
    monkeypatch.setenv("GENMODELS_ROOT", str(ill.root))
    number = register_vae(ill.root.parent, sprites_data, 1, 50.0)
    weights = registry.load("vae@champion").info["sha256"]
    new = ill.root.rename(ill.root.parent / "moved ü")
    monkeypatch.setenv("GENMODELS_ROOT", str(new))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow itself has set
    for asked in ((train, "--model", "vae", "--dry-run"), (sample, "--model", "vae@champion", "--each", new / "x")):
        line = refused(*asked)
        assert str(ill.root / "mlartifacts") in line and "doctor.py --mend" in line
    code, lines = examined()
    assert code == 1 and len(lines) == 1 and "the project was moved" in lines[0]
    assert examined("--mend")[0] == 0 and examined() == (0, ["nothing is left of any crash"])
    assert registry.load(f"vae/{number}").info["sha256"] == weights
    register_vae(ill.root.parent, sprites_data, 2, 40.0)
    assert registry.find("vae@champion").is_relative_to(new / "mlartifacts") and not ill.root.exists()


def test_a_store_that_is_away_is_said_and_hides_nothing_else(ill, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    table = ill.root / ".dvc/tmp/rwlock"
    table.parent.mkdir(parents=True)
    table.write_text("{")
    code, lines = examined("--mend")
    assert code == 1 and "MLflow cannot be reached" in lines[0] and "damaged" in lines[1] and not table.exists()


def test_what_was_half_written_goes_and_what_was_half_replaced_comes_back(ill):
    models = ill.root / "data/models"
    (models / "vae").mkdir(parents=True)
    (models / "vae/weights").write_text("old")
    killed(ill, f"from genmodels.files import *\nwrite_atomic(Path({str(models)!r}) / 'table', die)")
    replace = f"replace_folder(Path({str(models)!r}) / 'vae', lambda new: (new / 'weights').write_text('new'))"
    killed(ill, f"from genmodels.files import *\nos.replace = die\n{replace}")
    assert examined()[0] == 0  # another machine may be writing them
    assert not (models / "vae").exists()
    for path in models.iterdir():
        os.utime(path, (0, 0))
    code, lines = examined()
    assert code == 1 and any("renames it to vae" in line for line in lines)
    assert examined("--mend")[0] == 0
    assert [path.name for path in models.iterdir()] == ["vae"] and (models / "vae/weights").read_text() == "old"
    assert examined() == (0, ["nothing is left of any crash"])


def test_a_half_prepared_data_set_is_left_to_prepare_and_an_unknown_one_goes(ill):
    shards = ill.root / "data/shards"
    for name in ("sprites", "gone"):
        arguments = f"Path({str(shards)!r}) / {name!r}, Path('.'), 1, progress=die"
        killed(
            ill,
            "from pathlib import Path\nfrom genmodels.config import DatasetConfig\n"
            "from genmodels.data.prepare import prepare\n"
            f"prepare({name!r}, DatasetConfig(source='sprites', image_size=8, num_images=20), {arguments})",
        )
    code, lines = examined()
    assert code == 1 and len(lines) == 2
    assert any("goes on with: python pipelines/prepare.py --dataset sprites" in line for line in lines)
    assert examined("--mend")[0] == 0
    assert sorted(path.name for path in shards.iterdir()) == [".sprites.partial", "sprites"]
    shutil.rmtree(shards / ".sprites.partial")
    (shards / "sprites").rename(shards / ".sprites.replaced")  # killed between the two renames
    assert examined("--mend")[0] == 0 and (shards / "sprites/dataset.json").is_file()


def test_unpacked_files_go_unless_somebody_reads_them(ill):
    use = (
        "from genmodels.data.sources.spool import Spool\nimport pickle\nspool = Spool()\n"
        "assert spool.read('a', lambda file: file.write(b'content'), 0, 3) == b'con'\n"
    )
    killed(ill, f"{use}die()")
    reader = subprocess.Popen(
        [sys.executable, "-c", f"{use}copy = pickle.loads(pickle.dumps(spool))\nprint('ready', flush=True)\ninput()"],
        env=environment(ill),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdout.readline() == "ready\n"
        folders = set((ill.root.parent / "tmp").glob("genmodels-*"))
        assert len(folders) == 2
        assert examined("--mend")[0] == 0
        (left,) = (ill.root.parent / "tmp").glob("genmodels-*")
        assert left in folders and list(left.iterdir())
        reader.communicate("\n")


def test_locks_of_a_killed_dvc_are_released_and_those_of_a_living_one_kept(ill):
    dvc = [sys.executable, "-m", "dvc"]
    env = {**environment(ill), "DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=ill.root, env=env, check=True)
    wait = "python -c 'import time; time.sleep(600)'"
    stages = {name: {"cmd": wait, "deps": ["params.yaml"], "outs": [name]} for name in ("a", "b")}
    (ill.root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    table = ill.root / ".dvc/tmp/rwlock"
    running = [subprocess.Popen([*dvc, "repro", name], cwd=ill.root, env=env) for name in "ab"]
    families = []
    try:
        for _ in range(1200):
            entries = json.loads(table.read_text() or "{}") if table.exists() else {}
            if len(entries.get("write", {})) == 2:
                break
            time.sleep(0.1)
        families = [psutil.Process(each.pid).children(recursive=True) for each in running]
        assert examined() == (0, ["nothing is left of any crash"])
        running[0].kill()
        running[0].wait()
        code, lines = examined()
        assert code == 1 and f"DVC's locks of dead processes ({running[0].pid})" in lines[0]
        assert examined("--mend")[0] == 0
        entries = json.loads(table.read_text())
        assert {entry["pid"] for entry in entries["write"].values()} == {running[1].pid}
        assert {entry["pid"] for readers in entries["read"].values() for entry in readers} == {running[1].pid}
        table.write_text('{"write": {')  # as a power cut may leave it
        assert "damaged" in examined("--mend")[1][0] and not table.exists()
    finally:
        for process in [*running, *(child for family in families for child in family)]:
            if not isinstance(process, psutil.Process) or process.is_running():
                process.kill()
        for each in running:
            each.wait()


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_session_of_a_killed_driver_goes_and_that_of_a_living_one_stays(ill, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="gm-", dir="/tmp"))  # Ray's sockets lie in it: their paths must be short
    code = "import ray, time\nfrom pipelines import cluster\ncluster._connect(ray)\nprint('ready', flush=True)\ninput()"
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    env = {**environment(ill), "RAY_TMPDIR": str(folder)}
    try:
        with subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as driver:
            assert driver.stdout.readline() == "ready\n"
            family = psutil.Process(driver.pid).children(recursive=True)
            assert examined()[0] == 0
            driver.kill()
        psutil.wait_procs(family, timeout=20)
        other = folder / "ray/session_2026-01-01_00-00-00_000000_1"
        other.mkdir()  # not ours: it has no mark
        code, lines = examined()
        assert code == 1 and len(lines) == 1 and "a Ray that has ended" in lines[0]
        assert examined("--mend")[0] == 0
        assert [path for path in (folder / "ray").glob("session_*") if not path.is_symlink()] == [other]
    finally:
        shutil.rmtree(folder)
