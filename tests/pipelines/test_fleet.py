"""Several trainings side by side: what runs when, what a failure and an interruption leave."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from commands import refused, succeed
from conftest import make_project

from genmodels.config import ComputeConfig
from pipelines import cluster, fleet, train
from pipelines.cluster import fitting
from pipelines.project import UserError
from pipelines.run import all_runs

TRAIN = [sys.executable, "-m", "pipelines.train"]
IN_PROCESS = ComputeConfig(num_workers=0, use_gpu=False, cpus_per_worker=1)


@pytest.fixture
def handlers():
    """A fleet takes Ctrl-C and SIGTERM for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import time, sys, pathlib, os; {code}"]


def test_machines_hold_as_many_trainings_as_their_workers_fit():
    two = [{"CPU": 3.0, "memory": 1e9}, {"CPU": 5.0, "GPU": 2.0}]
    assert fitting(two, {"CPU": 1}, 1) == 8
    assert fitting(two, {"CPU": 2}, 1) == 3  # not 4: a worker does not span machines
    assert fitting(two, {"CPU": 2}, 2) == 1
    assert fitting(two, {"CPU": 1, "GPU": 1}, 1) == 2
    assert fitting(two, {"CPU": 8}, 1) == 0


def test_as_many_run_as_fit_and_a_failure_harms_no_other(tmp_path, capsys, handlers):
    def timed(name: str, end: str = "") -> list[str]:
        folder = str(tmp_path)
        code = f"p = pathlib.Path({folder!r}) / {name!r}; s = time.time(); time.sleep(1)"
        return python(f"{code}; p.write_text(f'{{s}} {{time.time()}}'); print('line of', {name!r}); {end or 'pass'}")

    commands = {
        "a": timed("a"),
        "b": timed("b", "print('error: no such thing', file=sys.stderr); sys.exit(2)"),
        "c": timed("c"),
        "d": timed("d", "os.kill(os.getpid(), 9)"),
    }
    outcomes = {each.name: each for each in fleet.run(commands, IN_PROCESS, lambda name: {"images": 1}, at_once=2)}
    assert {name: each.error for name, each in outcomes.items()} == {
        "a": None,
        "b": "no such thing",
        "c": None,
        "d": "killed by signal 9",
    }
    assert not fleet.show(list(outcomes.values())) and fleet.show([outcomes["a"]])
    output = capsys.readouterr().out
    assert "a: line of a\n" in output and "b: error: no such thing\n" in output
    spans = [tuple(map(float, (tmp_path / name).read_text().split())) for name in "abcd"]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) == 2


FLEET = """
from pipelines import fleet
from genmodels.config import ComputeConfig
import sys
sleep = [sys.executable, "-c", {code!r}]
fleet.run({{"a": sleep, "b": sleep}}, ComputeConfig(num_workers=0, use_gpu=False), lambda name: {{}}, at_once=2)
"""


def started(code: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A fleet of two, and its processes once both have said a word."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", FLEET.format(code=code)], stdout=subprocess.PIPE, text=True, env=environment
    )
    said = 0
    for line in process.stdout:
        said += line.endswith(": ready\n")
        if said == 2:
            break
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_fleet_lets_its_trainings_end_in_order(number, tmp_path):
    code = (
        "import signal, time, pathlib, os, sys\n"
        f"def end(*_): pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)"  # one long sleep would miss a signal that comes just before it
    )
    process, family = started(code)
    process.send_signal(number)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert process.returncode != 0 and not alive
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.cluster
def test_a_killed_fleet_leaves_no_process_not_even_new_ones(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "print('ready', flush=True)\n"
        "while True: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(0.5)"
    )
    process, family = started(code)
    time.sleep(1)
    mark = next(child.environ()["GENMODELS_DRIVER"] for child in family if "GENMODELS_DRIVER" in child.environ())
    process.kill()
    process.communicate()

    def marked() -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if p.uids().real == os.getuid() and mark in _environment(p)]

    for _ in range(100):
        if not marked():
            break
        time.sleep(0.1)
    assert not marked()


def _environment(process: psutil.Process) -> list[str]:
    try:
        return list(process.environ().values())
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def fleet_project(tmp_path_factory, sprites_data):
    return make_project(tmp_path_factory.mktemp("fleet"), sprites_data)


def test_a_wrong_model_or_recipe_of_several_starts_nothing(project):
    assert "unknown model 'gna'" in refused(train, "--model", "vae,gna")
    assert "unknown recipe of gan 'wide'" in refused(train, "--model", "vae,gan", "--recipe", "wide")
    assert not project.runs.exists() or not all_runs(project.runs)


def test_plans_and_settings_of_all_models_are_shown(project):
    output = succeed(train, "--model", "all", "--dry-run")
    for model in ("progan", "vae", "autoencoder"):
        assert f"{model} on sprites" in output
    assert succeed(train, "--model", "vae,gan", "--print-config").count("model: ") == 2


@pytest.mark.cluster
def test_the_same_fleet_again_trains_what_failed_and_then_starts_anew(fleet_project):
    def trained(rate: float) -> subprocess.CompletedProcess:
        out = fleet_project.root / "out"
        settings = ["--set", f"models.vae.lr={rate}", "--set", "compute.cpus_per_worker=1"]
        command = [*TRAIN, "--model", "vae,gan", "--out", str(out), *settings]
        environment = fleet_project.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)

    failed = trained(1e30)
    assert failed.returncode == 1 and "vae: error: vae: phase 'elbo', term" in failed.stdout, failed
    assert "gan: registered gan version 1" in failed.stdout
    assert [path.name for path in (fleet_project.root / "out").iterdir()] == ["gan"]
    again = trained(1e-3)
    assert again.returncode == 0, again
    assert "gan: finished before" in again.stdout and "vae: registered vae version 1" in again.stdout
    results = {file.parent.name: json.loads(file.read_text()) for file in fleet_project.root.glob("out/*/run.json")}
    assert {model: result["version"] for model, result in results.items()} == {"vae": 1, "gan": 1}
    assert not list(fleet_project.runs.glob(".fleet-*"))
    models = [run.config.model for run in all_runs(fleet_project.runs)]
    assert sorted(models) == ["gan", "vae", "vae"]  # the failed vae has other settings


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trainings_share_one_ray_that_ends_with_them(sprites_data, tmp_path):
    project = make_project(tmp_path, sprites_data)
    settings = ["--set", "compute.num_workers=1", "--set", "compute.cpus_per_worker=1"]
    command = [*TRAIN, "--model", "vae,gan,autoencoder", *settings]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=project.environment, stdout=out, stderr=subprocess.STDOUT)
    servers, family, niceness = set(), set(), set()
    while process.poll() is None:
        family |= set(psutil.Process(process.pid).children(recursive=True))
        for child in family:
            with suppress(psutil.NoSuchProcess):
                servers |= {child} if child.name() == "gcs_server" else set()
                niceness |= {child.nice()} if "Train" in child.name() else set()
        time.sleep(0.5)
    assert process.returncode == 0, log.read_text()
    assert len(servers) == 1 and niceness == {0}
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    runs = all_runs(project.runs)
    assert {run.config.model for run in runs} == {"vae", "gan", "autoencoder"}
    assert all(run.info["result"]["version"] == 1 for run in runs)
    folder = project.root / "data/runs/extractors"
    assert len([path for path in Path(folder).iterdir() if path.suffix == ".safetensors"]) == 1


@pytest.mark.parametrize(
    ("cpus", "num_workers", "share"),
    [(None, 1, 4), (None, 2, 3), (None, 3, 2), (2, 2, 2), (5, 1, None), (2, 4, None)],
)
def test_a_worker_asks_for_no_more_than_a_machine_has(cpus, num_workers, share):
    """Ray would wait for ever for what the machines hold together and none alone."""
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 3.0}}]
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 7.0}, nodes=lambda: nodes)
    asked = partial(cluster._resources, ComputeConfig(cpus_per_worker=cpus), num_workers, False, ray)
    if share:
        assert asked() == {"CPU": share}
    else:
        with pytest.raises(UserError, match="lower compute.num_workers or compute.cpus_per_worker"):
            asked()
