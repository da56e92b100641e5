"""Trainings over several nodes of one machine: where workers go, what is checked before, who comes and goes."""

import gc
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Project, make_project

from pipelines.run import Run

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("compute.cpus_per_worker=1", "models.dcgan.train.checkpoint_every=320")


@pytest.fixture(scope="module")
def nodes_project(tmp_path_factory, sprites_data) -> Project:
    return make_project(tmp_path_factory.mktemp("nodes"), sprites_data)


@pytest.fixture(scope="module", autouse=True)
def token(tmp_path_factory) -> Iterator[None]:
    """One token for all nodes and drivers of these tests."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@contextmanager
def cluster(num_nodes: int) -> Iterator:
    """Nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            nodes.add_node(num_cpus=1)
        yield nodes
    finally:
        nodes.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # sockets that Ray leaves to the garbage collector
            del nodes
            gc.collect()


def start(project: Project, address: str, storage: str, *settings: str, model: str = "dcgan") -> subprocess.Popen:
    """A training on the cluster at `address`."""
    settings = (*SETTINGS, f"compute.storage_path=data/{storage}", *settings)
    arguments = [part for setting in settings for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", "--model", model, *arguments],
        env={**os.environ, "GENMODELS_ROOT": str(project.root), "RAY_ADDRESS": address},
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
    with cluster(num_nodes) as nodes:
        spread = finished(nodes_project, name, start(nodes_project, nodes.address, name, workers))
        nodes.add_node(num_cpus=num_nodes)  # where Ray packs all workers
        packed = finished(nodes_project, f"{name}-one", start(nodes_project, nodes.address, f"{name}-one", workers))
    for run, num_used in ((spread, num_nodes), (packed, 1)):
        (started,) = of_type(run, "started")
        assert len(started["nodes"]) == num_nodes and len(set(started["nodes"])) == num_used
    assert weights(spread) == weights(packed)


@pytest.mark.slow
@pytest.mark.chaos
def test_workers_come_and_go_with_the_nodes(nodes_project):
    """Elastic: 1 worker, 2 when a node comes, 1 when it is killed; every image count is logged once."""
    settings = ("compute.num_workers=[1, 2]", "models.dcgan.train.num_images=12000")
    with cluster(1) as nodes:
        process = start(nodes_project, nodes.address, "elastic", *settings)
        wait_for(lambda: list((nodes_project.root / "data/elastic").glob("*/run.json")))
        run = only_run(nodes_project, "elastic")
        counts = lambda: [event["workers"] for event in of_type(run, "started")]  # noqa: E731
        wait_for(lambda: counts() == [1])
        other = nodes.add_node(num_cpus=1)
        wait_for(lambda: counts() == [1, 2])
        joined = of_type(run, "started")[1]["num_images"]
        wait_for(lambda: of_type(run, "log")[-1]["num_images"] > joined + 320)
        nodes.remove_node(other, allow_graceful=False)
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
    with cluster(2) as nodes:
        process = start(nodes_project, nodes.address, "drained", *settings, never)
        wait_for(lambda: list((nodes_project.root / "data/drained").glob("*/run.json")))
        run = only_run(nodes_project, "drained")
        wait_for(lambda: len(of_type(run, "log")) > 3)
        assert not list((run.folder / "checkpoints").glob("0*"))
        (node,) = nodes.worker_nodes
        announce_preemption(nodes.address, node.node_id)
        asked = time.monotonic()
        (saved,) = wait_for(lambda: list((run.folder / "checkpoints").glob("0*")), 30)
        assert time.monotonic() - asked < 20
        nodes.add_node(num_cpus=1)
        nodes.remove_node(node, allow_graceful=False)
        wait_for(lambda: len(of_type(run, "started")) == 2)
        assert of_type(run, "started")[1]["num_images"] >= int(saved.name) > 0
        process.terminate()
        process.communicate(timeout=60)


def announce_preemption(address: str, node_id: str) -> None:
    """As an autoscaler does when a spot machine is to be taken away in two minutes."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + 120) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "spot", deadline)
    assert accepted, why


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
    with cluster(1) as nodes, other_machine(nodes, mounts, fake.parent):
        process = start(nodes_project, nodes.address, "strange", "compute.num_workers=2")
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    lines = [line.strip().removeprefix("error: ") for line in errors.splitlines()]
    expected = ["torch 1.0 there, 2.", "the project's code there is another", "is not there; set", "shards are out of"]
    assert len(lines) == len(expected) and all(line.startswith("node ") for line in lines), errors
    for words in expected:
        assert sum(words in line for line in lines) == 1, errors
    assert not list(data.rglob(".preflight-*"))


@contextmanager
def other_machine(nodes, mounts: str, packages: Path) -> Iterator[None]:
    """A node that sees other disks, by `mounts` in a namespace of its own, and finds `packages` first."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    ray = Path(sys.executable).with_name("ray")
    node = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", f"{mounts} && exec {ray} start --address={nodes.address} --block"],
        env={**os.environ, "PYTHONPATH": str(packages)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: sum(known["Alive"] for known in nodes.global_state.node_table()) == 2, 90)
        yield
    finally:
        node.terminate()
        node.wait(60)
