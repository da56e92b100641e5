"""Sweeps on a local Ray: killed and gone on with, with trials that fail, and with trials of several workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import Project, make_project

from pipelines.run import locked, read_events
from pipelines.sweep import Sweep

COMMAND = [sys.executable, "-m", "pipelines.tune", "--model", "autoencoder"]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path, sprites_data) -> Project:
    project = make_project(tmp_path, sprites_data, 432)
    path = tmp_path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["compute"] = {"num_workers": 1, "use_gpu": False, "cpus_per_worker": 1}
    params["sweep"] = {"autoencoder": {"lr": {"loguniform": [0.0001, 0.01]}, "latent_dim": {"int": [2, 8]}}}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return project


def the_sweep(project: Project) -> Sweep:
    (folder,) = (project.runs / "sweeps").glob("autoencoder-*")
    return Sweep(folder)


def tune(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], env=project.environment, cwd=project.root, capture_output=True, text=True, timeout=280
    )


def mlflow_states(project: Project) -> dict[str, str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    return {run.info.run_name: run.info.status for run in client.search_runs(["1"])}


@pytest.mark.chaos
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_was_ended_goes_on_and_repeats_no_trial(kind, project):
    child = subprocess.Popen([*COMMAND, "--num-trials", "5"], env=project.environment, cwd=project.root)
    deadline = time.monotonic() + 240
    while not list(project.runs.glob("sweeps/*/trial-*")) or sum(_ended(project)) < 2:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(child.pid, kind)
    assert child.wait(60) == (-kind if kind == signal.SIGKILL else 130)
    if kind != signal.SIGKILL:
        assert the_sweep(project).info["status"] == "stopped"
        assert "RUNNING" not in mlflow_states(project).values()
    before = {trial.name: trial.events() for trial in the_sweep(project).trials() if _is_ended(trial.folder)}
    done = tune(project, "--num-trials", "5")
    assert done.returncode == 0, done.stderr
    trials = the_sweep(project).trials()
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.status for trial in trials} <= {"finished", "halted"}
    for name, events in before.items():
        assert Sweep(the_sweep(project).folder / name).events() == events, f"{name} was trained again"
    for trial in trials:  # an event arrives once, whatever was repeated
        logs = [event["num_images"] for event in trial.events() if event["type"] == "log"]
        assert logs == sorted(set(logs))
    assert "RUNNING" not in mlflow_states(project).values()
    assert len(mlflow_states(project)) == 6
    again = tune(project, "--num-trials", "5")
    assert "is finished" in again.stdout and again.returncode == 0


def _is_ended(folder: Path) -> bool:
    return any(event["type"] == "finished" for event in read_events(folder / "events.jsonl")[0])


def _ended(project: Project) -> list[bool]:
    return [trial.status in ("finished", "halted") for trial in the_sweep(project).trials()]


@pytest.mark.chaos
def test_a_trial_whose_process_dies_fails_alone(project):
    """What an out-of-memory killer does to the second trial, as often as it is tried."""
    arguments = ["--scheduler", "none", "--trial-images", "1600", "--num-trials", "3"]
    child = subprocess.Popen([*COMMAND, *arguments], env=project.environment, cwd=project.root)
    killed: list[int] = []
    while child.poll() is None:
        time.sleep(0.02)
        for lock in project.runs.glob("sweeps/*/trial-001/lock"):
            words = lock.read_text().split()
            if locked(lock) and len(words) > 1 and int(words[1]) not in killed:
                killed.append(int(words[1]))
                os.kill(killed[-1], signal.SIGKILL)
    assert child.returncode == 0 and len(killed) == 2
    trials = the_sweep(project).trials()
    assert [trial.status for trial in trials] == ["finished", "failed", "finished"]
    assert "died" in trials[1].info["reason"]
    assert sorted(mlflow_states(project).values()) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]


def test_trials_of_two_workers_are_jobs_of_ray_train(project):
    done = tune(
        project,
        "--num-trials",
        "1",
        "--num-workers",
        "2",
        "--scheduler",
        "none",
        "--set",
        "compute.cpus_per_worker=0.5",
    )
    assert done.returncode == 0, done.stderr
    (trial,) = the_sweep(project).trials()
    assert trial.status == "finished" and len(trial.scores()) == 1
    started = [event for event in trial.events() if event["type"] == "started"]
    assert [event["workers"] for event in started] == [2]
