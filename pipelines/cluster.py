"""The only place that knows Ray: runs workers on a local or a given cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from genmodels.config import ComputeConfig
from genmodels.data.decode import Decoder, Sample, decode_chunk
from genmodels.data.fields import Record, Reject
from pipelines import access, reaper
from pipelines.preflight import check_nodes
from pipelines.project import UserError, last_line
from pipelines.run import Run
from pipelines.watching import repeating

LOOK_EVERY = 2.0  # seconds between looks for nodes that are about to go
RESIZE_EVERY = 30.0  # seconds between looks for more workers, where their number may change
RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's polling; 2 s by default
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",  # finds a stopped worker
    "RAY_worker_niceness": "0",  # 15 by default: any other process starves a worker until it seems to have stopped
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a stopped worker never answers; 30 s by default
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # for Ray's dashboard; MLflow has ours
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

SIDE_BY_SIDE = "GENMODELS_SIDE_BY_SIDE"  # set where other trainings share the cluster


def resolve(compute: ComputeConfig, batch_sizes: Iterable[int], least_share: int) -> ComputeConfig:
    """`num_workers: auto` as a number: the most of one a GPU that share every batch evenly; one without GPUs.

    A share is at least `least_share` images.

    On two shared cores, two workers of the small recipes took as long as one: every step waits for the slower.
    UserError where RAY_ADDRESS names a cluster that should not be joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and compute.num_workers != 0:
        access.check(address)
    if compute.num_workers == 0:
        _local_device(compute)  # says so where it is not there
    if compute.num_workers != "auto":
        return compute
    most = 1 if SIDE_BY_SIDE in os.environ else _num_gpus(compute) or 1
    sizes = list(batch_sizes)
    fitting = [num for num in range(2, most + 1) if all(n % num == 0 and n // num >= least_share for n in sizes)]
    return compute.model_copy(update={"num_workers": max(fitting, default=1)})


def train(run: Run, attempt: str, extractor: Path, compute: ComputeConfig, until: int | None = None) -> None:
    """Trains `run` to its end, or `until` so many images, on `compute.num_workers` workers, 0: in this process.

    UserError when workers were lost more often than `compute.max_failures`.
    """
    from pipelines import worker

    assert compute.num_workers != "auto"
    if compute.num_workers == 0:
        worker.train(str(run.folder), attempt, str(extractor), _local_device(compute), until=until)
        return
    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_SETTINGS.items()})
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import ScalingConfig  # as ray.train has it, with its types

    _connect(ray)
    least, most = compute.worker_counts[0], compute.worker_counts[-1]
    use_gpu = _use_gpu(compute, least, ray)
    if _is_here_alone(ray):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process less to start
    else:
        check_nodes(ray, run.folder, Path(run.info["shards"]), compute.checkpoint_store)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "folder": str(run.folder),
            "attempt": attempt,
            "extractor": str(extractor),
            "until": until,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=use_gpu,
            resources_per_worker=_resources(compute, least, use_gpu, ray),
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=str(run.folder / "ray"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    try:
        with _saving_before_drains(run):
            beside_main(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise UserError(f"run {run.name}: the workers failed: {last_line(error)}") from error


@contextmanager
def shared(compute: ComputeConfig) -> Iterator[tuple[Callable[[], int], dict[str, str]]]:
    """One cluster for several trainings: how many of them it holds now, and the environment in which they join it.

    `num_workers: auto` is one worker a training there: side by side they use a machine better than one over all of it.
    """
    num_workers = 1 if compute.num_workers == "auto" else compute.worker_counts[0]
    environment = {**os.environ, SIDE_BY_SIDE: "1"}
    if num_workers == 0:
        yield partial(_room_without_ray, compute), {"OMP_NUM_THREADS": f"{_threads(compute)}", **environment}
        return
    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_SETTINGS.items()})
    import ray

    _connect(ray)
    address = os.environ.get("RAY_ADDRESS") or ray.get_runtime_context().gcs_address
    joining = {**environment, **os.environ, "RAY_ADDRESS": address}  # Ray has set how it authenticates
    try:
        yield partial(_room, compute, num_workers, ray), joining
    finally:
        ray.shutdown()


def join(compute: ComputeConfig, folder: Path, data: Path) -> tuple[dict[str, float], int]:
    """Joins or starts the cluster for trainings that this process starts; a worker's share, and how many fit now."""
    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_SETTINGS.items()})
    import ray

    _connect(ray)
    least = compute.worker_counts[0]
    share = _resources(compute, least, _use_gpu(compute, least, ray), ray)
    if not _is_here_alone(ray):
        check_nodes(ray, folder, data, compute.checkpoint_store)
    return share, _room(compute, least, ray)


def _room(compute: ComputeConfig, num_workers: int, ray: Any) -> int:
    """How many trainings fit the cluster as it is now; at least one: Ray waits for a machine that may come back."""
    try:
        asked = _resources(compute, num_workers, _use_gpu(compute, num_workers, ray), ray)
    except UserError:  # a machine is away
        return 1
    return max(1, fitting([node["Resources"] for node in ray.nodes() if node["Alive"]], asked, num_workers))


def fitting(nodes: list[dict[str, float]], asked: dict[str, float], num_workers: int) -> int:
    """How many trainings fit machines of these resources; a worker is on one machine, a training may be on several."""
    workers = sum(min(int(node.get(kind, 0) // amount) for kind, amount in asked.items()) for node in nodes)
    return workers // num_workers


def _room_without_ray(compute: ComputeConfig) -> int:
    return 1 if _local_device(compute) == "cuda" else len(os.sched_getaffinity(0)) // _threads(compute)


def _threads(compute: ComputeConfig) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(max(1, int(compute.cpus_per_worker or cores)), cores)


class RayPool:
    """Decodes as tasks on the cluster; each node must see the source."""

    def __init__(self, decoder: Decoder):
        import ray

        _connect(ray)
        self.size = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._ray, self._decoder, self._task = ray, ray.put(decoder), ray.remote(decode_chunk)
        self._latest: deque[Any] = deque(maxlen=3 * self.size)  # more than are ever under way

    def submit(self, records: list[Record]) -> Callable[[], list[Sample | Reject]]:
        """Begins to decode `records` somewhere."""
        reference = self._task.remote(self._decoder, records)
        self._latest.append(reference)
        return lambda: self._ray.get(reference)

    def close(self) -> None:
        """Drops the tasks under way; those that have ended do not mind."""
        for reference in self._latest:
            self._ray.cancel(reference)


def _worker_loop(config: dict[str, Any]) -> None:
    import ray.train.torch

    from pipelines import worker

    node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
    worker.train(**config, device=ray.train.torch.get_device(), node=node)


def _connect(ray: Any) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine that ends with this process."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        access.check(address)
    handler = signal.getsignal(signal.SIGTERM)
    local = {} if address else {"include_dashboard": False}
    if not address:
        reaper.start()
        address = "local"  # None would join whatever was started last on this machine
    # Workers speak through events, not through the log.
    context = ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    if local:
        Path(context.address_info["session_dir"], "genmodels").touch()  # whose it is, for pipelines/doctor.py
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process before the run is marked


def _is_here_alone(ray: Any) -> bool:
    """Whether the cluster is this machine, which needs no look at itself."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname()


def beside_main(action: Callable[[], Any]) -> None:
    """Runs `action` in another thread: in the main one, Ray Train would answer Ctrl-C, without a checkpoint."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    outcome.result()


def _saving_before_drains(run: Run) -> AbstractContextManager[None]:
    """Asks for a checkpoint when a node is about to be taken away, as spot machines and autoscalers announce."""
    from ray._private.state import state  # what Ray Train's own watcher reads; it has no public form without a barrier

    known: set[str] = set()

    def look() -> None:
        nonlocal known
        with suppress(Exception):  # whatever the cluster's store has; it is asked again
            draining = set(state.get_draining_nodes())
            if draining - known:
                run.ask("save")
            elif known and run.asked() == "save":
                run.ask("")  # so that the next one is heard
            known = draining

    return repeating(look, LOOK_EVERY, "drain-watch")


def _num_gpus(compute: ComputeConfig) -> int:
    if compute.use_gpu is False:
        return 0
    if os.environ.get("RAY_ADDRESS"):
        import ray

        _connect(ray)
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def _use_gpu(compute: ComputeConfig, num_workers: int, ray: Any) -> bool:
    if compute.use_gpu != "auto":
        return compute.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= num_workers


def _resources(compute: ComputeConfig, num_workers: int, use_gpu: bool, ray: Any) -> dict[str, float]:
    """What a worker asks for; UserError when the cluster cannot hold them all, which would wait for ever."""
    total, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = {"GPU": 1} if use_gpu else {}
    cpus = compute.cpus_per_worker or max(1, total.get("CPU", 1) // num_workers)
    while not compute.cpus_per_worker and cpus > 1 and not fitting(nodes, {"CPU": cpus, **gpu}, num_workers):
        cpus -= 1  # an even share of all is more than a machine may have
    resources = {"CPU": cpus, **gpu}
    for kind, amount in resources.items():
        if amount * num_workers > total.get(kind, 0):
            raise UserError(
                f"{num_workers} workers of {amount:g} {kind} need {amount * num_workers:g},"
                f" the cluster has {total.get(kind, 0):g}: lower compute.num_workers or compute.cpus_per_worker"
            )
    if not fitting(nodes, resources, num_workers):
        asked = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
        raise UserError(
            f"the cluster's {len(nodes)} machines do not hold {num_workers} workers of {asked}, each on one machine:"
            " lower compute.num_workers or compute.cpus_per_worker"
        )
    return resources


def _local_device(compute: ComputeConfig) -> str:
    import torch

    there = torch.cuda.is_available()
    if compute.use_gpu is True and not there:
        raise UserError("compute.use_gpu is true, and torch finds no GPU on this machine; choices: auto, false")
    return "cuda" if there and compute.use_gpu else "cpu"
