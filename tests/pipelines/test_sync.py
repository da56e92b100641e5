"""A tracking server that goes away: trainings go on, and one command sends what it has not got, each event once."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from commands import call, refused, succeed
from conftest import Project, make_project
from mlflow_server import Server, assert_all_arrived_once, client

from pipelines import sync, tracking
from pipelines.run import Run, all_runs, owned

pytestmark = pytest.mark.cluster
TRAIN = [sys.executable, "-m", "pipelines.train", "--model", "vae"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def served(server, sprites_data, tmp_path, monkeypatch) -> Project:
    """A project whose runs go to the server."""
    if not server.process:
        server.start()
    project = make_project(tmp_path, sprites_data)
    monkeypatch.setenv("GENMODELS_ROOT", str(project.root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return project


def started(project: Project, server: Server, *settings: str) -> subprocess.Popen:
    arguments = [part for setting in settings for part in ("--set", setting)]
    environment = {**project.environment, "MLFLOW_TRACKING_URI": server.uri}
    with (project.root / "log").open("w") as log:
        return subprocess.Popen([*TRAIN, *arguments], env=environment, stdout=log, stderr=log)


def stored(run: Run) -> dict:
    """All that MLflow has of a run, to be compared."""
    run_id = run.info["mlflow_run_id"]
    tracked = client().get_run(run_id)
    history = {name: len(client().get_metric_history(run_id, name)) for name in tracked.data.metrics}
    files = [file.path for folder in ("images", "data") for file in client().list_artifacts(run_id, folder)]
    versions = [version.version for version in client().search_model_versions("name = 'vae'")]
    return {
        "info": dict(tracked.info),
        "params": tracked.data.params,
        "tags": tracked.data.tags,
        "history": history,
    } | {
        "files": files,
        "versions": versions,
    }


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_server_that_is_away_for_half_a_minute_stalls_nothing_and_misses_nothing(served, server):
    long = (
        "train.num_images=1000000",
        "train.log_every=160",
        "train.checkpoint_every=16000",
        "train.snapshot_every=200000",
    )
    process = started(served, server, *(f"models.vae.{setting}" for setting in long))
    run = _logged(served, process, 3)
    server.kill()
    killed = time.time()
    time.sleep(30)
    server.start()
    returned = time.time()
    process.terminate()  # it is long enough to be still running
    assert process.wait(240) != 0, (served.root / "log").read_text()
    times = [event["time"] for event in run.events() if event["type"] == "log"]
    away = [moment for moment in times if killed < moment < returned]
    assert len(away) > 5 and max(b - a for a, b in zip(away, away[1:], strict=False)) < 15, away
    assert client().get_run(run.info["mlflow_run_id"]).info.status == "KILLED"
    assert_all_arrived_once(run)


def _logged(project: Project, process: subprocess.Popen, number: int) -> Run:
    """The run, when MLflow has got so many of its log events."""
    for _ in range(1200):
        assert process.poll() is None, (project.root / "log").read_text()
        for run in all_runs(project.runs):
            run_id = run.info["mlflow_run_id"]
            if run_id and len(client().get_metric_history(run_id, "images_per_second")) >= number:
                return run
        time.sleep(0.2)
    raise AssertionError("nothing logged in four minutes")


@pytest.mark.timeout(1200)
def test_what_a_server_that_never_came_back_missed_is_sent_by_one_command(served, server):
    process = started(served, server, "models.vae.train.num_images=8000", "models.vae.train.snapshot_every=4000")
    run = _logged(served, process, 1)
    server.kill()
    assert process.wait(400) == 0, (served.root / "log").read_text()
    log = (served.root / "log").read_text()
    assert "MLflow is away" in log and "pipelines/sync.py" in log
    assert run.info["status"] == "finished" and "version" not in run.info["result"]
    assert "cannot be reached" in refused(sync)
    server.start()
    assert client().get_run(run.info["mlflow_run_id"]).info.status == "RUNNING"
    output = succeed(sync)
    for words in ("points and pictures sent", "registered as version 1", "marked FINISHED"):
        assert words in output
    assert_all_arrived_once(run)
    version = client().get_model_version_by_alias("vae", "champion")
    assert version.run_id == run.info["mlflow_run_id"] and run.info["result"]["version"] == int(version.version)
    before = stored(run)
    assert succeed(sync) == "1 runs, 1 of them were complete\n"
    assert stored(run) == before


@pytest.fixture
def finished(project) -> Run:
    """A finished run whose MLflow run knows everything, in a store without a server."""
    if not project.runs.exists():
        from pipelines import train

        succeed(train, "--model", "vae")
    (run,) = [run for run in all_runs(project.runs) if run.info["status"] == "finished"]
    return run


def test_a_run_that_somebody_holds_or_deleted_in_mlflow_is_left_alone(finished, project, tmp_path):
    run_id = finished.info["mlflow_run_id"]
    client().set_terminated(run_id, "FAILED")
    with owned(finished):
        assert "0 runs" in succeed(sync)
    assert client().get_run(run_id).info.status == "FAILED"
    client().delete_run(run_id)
    assert succeed(sync) == "1 runs, 1 of them were complete\n" and finished.info["mlflow_run_id"] == run_id
    client().restore_run(run_id)
    assert f"{finished.name}: marked FINISHED" in succeed(sync)


def test_a_run_of_which_mlflow_has_heard_nothing_is_made_there(finished, project):
    copy = project.runs / "vae-0-1"
    shutil.copytree(finished.folder, copy)
    run = Run(copy)
    run.update(mlflow_run_id=None, status="running")
    try:
        assert "marked KILLED" in succeed(sync)
        tracked = client().get_run(run.info["mlflow_run_id"])
        assert tracked.info.start_time == int(run.info["created"] * 1000) and tracked.info.status == "KILLED"
        assert tracked.data.params["model"] == "vae" and run.info["status"] == "killed"
        assert_all_arrived_once(run)
        assert call(sync).output == "2 runs, 2 of them were complete\n"
    finally:
        shutil.rmtree(copy)


def test_what_arrives_in_batches_arrives_by_whole_events(finished, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_BATCH", 20)
    events = finished.events()
    batches = list(tracking._batches(events))
    assert len(batches) > 1 and max(map(len, batches)) <= 20
    told = [{(point.step, point.key.startswith("score")) for point in batch} for batch in batches]
    assert all(not one & other for i, one in enumerate(told) for other in told[i + 1 :]), told
