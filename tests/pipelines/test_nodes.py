"""Trainings over several nodes of one machine: where workers go, what is checked before, who comes and goes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Project, make_project
from ray_nodes import Nodes, ray_nodes

from pipelines.run import Run

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("compute.cpus_per_worker=1", "models.dcgan.train.checkpoint_every=320")


@pytest.fixture(scope="module")
def nodes_project(tmp_path_factory, sprites_data) -> Project:
    return make_project(tmp_path_factory.mktemp("nodes"), sprites_data)


def start(project: Project, nodes: Nodes, storage: str, *settings: str) -> subprocess.Popen:
    """A training on the cluster."""
    settings = (*SETTINGS, f"compute.storage_path=data/{storage}", *settings)
    arguments = [part for setting in settings for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", "--model", "dcgan", *arguments],
        env={**nodes.environment, "GENMODELS_ROOT": str(project.root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(project: Project, storage: str, process: subprocess.Popen) -> Run:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return only_run(project, storage)


def only_run(project: Project, storage: str) -> Run:
    (file,) = (project.root / "data" / storage).glob("*/run.json")
    return Run(file.parent)


def of_type(run: Run, kind: str) -> list[dict]:
    return [event for event in run.events() if event["type"] == kind]


def wait_for(what, seconds: float = 240):
    """The first true value of `what()`."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)
    return value


def weights(run: Run) -> str:
    return of_type(run, "finished")[0]["weights"]


@pytest.mark.parametrize("num_nodes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_on_several_nodes_end_with_the_weights_of_one_node(num_nodes, nodes_project):
    name, workers = f"spread-{num_nodes}", f"compute.num_workers={num_nodes}"
    with ray_nodes(num_nodes) as nodes:
        spread = finished(nodes_project, name, start(nodes_project, nodes, name, workers))
        nodes.ask("add", num_nodes)  # where Ray packs all workers
        packed = finished(nodes_project, f"{name}-one", start(nodes_project, nodes, f"{name}-one", workers))
    for run, num_used in ((spread, num_nodes), (packed, 1)):
        (started,) = of_type(run, "started")
        assert len(started["nodes"]) == num_nodes and len(set(started["nodes"])) == num_used
    assert weights(spread) == weights(packed)


@pytest.mark.slow
@pytest.mark.chaos
def test_workers_come_and_go_with_the_nodes(nodes_project):
    """Elastic: 1 worker, 2 when a node comes, 1 when it is killed; every image count is logged once."""
    settings = ("compute.num_workers=[1, 2]", "models.dcgan.train.num_images=12000")
    with ray_nodes(1) as nodes:
        process = start(nodes_project, nodes, "elastic", *settings)
        wait_for(lambda: list((nodes_project.root / "data/elastic").glob("*/run.json")))
        run = only_run(nodes_project, "elastic")
        counts = lambda: [event["workers"] for event in of_type(run, "started")]  # noqa: E731
        wait_for(lambda: counts() == [1])
        nodes.ask("add", 1)
        wait_for(lambda: counts() == [1, 2])
        joined = of_type(run, "started")[1]["num_images"]
        wait_for(lambda: of_type(run, "log")[-1]["num_images"] > joined + 320)
        nodes.ask("kill")
        wait_for(lambda: counts() == [1, 2, 1])
        run = finished(nodes_project, "elastic", process)
    shown = [event["num_images"] for event in of_type(run, "log")]
    assert shown == sorted(set(shown)) and shown[-1] == 12000
    for before, after in zip(of_type(run, "started"), of_type(run, "started")[1:], strict=False):
        assert before["num_images"] < after["num_images"]


@pytest.mark.slow
def test_a_node_that_is_about_to_go_leaves_a_checkpoint(nodes_project):
    settings = ("compute.num_workers=2", "models.dcgan.train.num_images=40000")
    never = "models.dcgan.train.checkpoint_every=1000000"
    with ray_nodes(2) as nodes:
        process = start(nodes_project, nodes, "drained", *settings, never)
        wait_for(lambda: list((nodes_project.root / "data/drained").glob("*/run.json")))
        run = only_run(nodes_project, "drained")
        wait_for(lambda: len(of_type(run, "log")) > 3)
        assert not list((run.folder / "checkpoints").glob("0*"))
        nodes.ask("drain")
        asked = time.monotonic()
        (saved,) = wait_for(lambda: list((run.folder / "checkpoints").glob("0*")), 30)
        assert time.monotonic() - asked < 20
        nodes.ask("kill")
        nodes.ask("add", 1)
        wait_for(lambda: len(of_type(run, "started")) == 2)
        assert of_type(run, "started")[1]["num_images"] >= int(saved.name) > 0
        process.terminate()
        process.communicate(timeout=60)


def test_a_node_where_a_worker_would_fail_is_named_with_what_to_do(nodes_project, tmp_path):
    """A second node with older code, another torch, and another disk where the storage should be."""
    older = tmp_path / "pipelines"
    shutil.copytree(ROOT / "pipelines", older)
    (older / "run.py").write_text((ROOT / "pipelines" / "run.py").read_text() + "# older\n")
    fake = tmp_path / "packages" / "torch-1.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    data = nodes_project.root / "data"
    mounts = f"mount -t tmpfs tmpfs {data} && mount --bind {older} {ROOT / 'pipelines'}"
    with ray_nodes(1) as nodes, other_machine(nodes, mounts, fake.parent):
        process = start(nodes_project, nodes, "strange", "compute.num_workers=2")
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    lines = [line.strip().removeprefix("error: ") for line in errors.splitlines()]
    expected = ["torch 1.0 there, 2.", "the project's code there is another", "is not there; set", "shards are out of"]
    assert len(lines) == len(expected) and all(line.startswith("node ") for line in lines), errors
    for words in expected:
        assert sum(words in line for line in lines) == 1, errors
    assert not list(data.rglob(".preflight-*"))


@contextmanager
def other_machine(nodes: Nodes, mounts: str, packages: Path) -> Iterator[None]:
    """A node that sees other disks, by `mounts` in a namespace of its own, and finds `packages` first."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    ray = Path(sys.executable).with_name("ray")
    node = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", f"{mounts} && exec {ray} start --address={nodes.address} --block"],
        env={**nodes.environment, "PYTHONPATH": str(packages)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: nodes.ask("count") == "2", 90)
        yield
    finally:
        node.terminate()
        node.wait(60)
