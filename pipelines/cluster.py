"""The only place that knows Ray: runs workers on a local or a given cluster."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from genmodels.config import ComputeConfig
from genmodels.data.decode import Decoder, Sample, decode_chunk
from genmodels.data.fields import Record, Reject
from pipelines import access, reaper
from pipelines.project import UserError
from pipelines.run import Run

RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's polling; 2 s by default
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",  # finds a stopped worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def resolve(compute: ComputeConfig, batch_sizes: Iterable[int]) -> ComputeConfig:
    """`num_workers: auto` as a number: the most of one a GPU that divides every batch; one without GPUs.

    On two shared cores, two workers of the small recipes took as long as one: every step waits for the slower.
    UserError where RAY_ADDRESS names a cluster that should not be joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and compute.num_workers != 0:
        access.check(address)
    if compute.num_workers != "auto":
        return compute
    fitting = [num for num in range(1, (_num_gpus(compute) or 1) + 1) if all(size % num == 0 for size in batch_sizes)]
    return compute.model_copy(update={"num_workers": fitting[-1]})


def train(run: Run, attempt: str, extractor: Path, compute: ComputeConfig) -> None:
    """Trains `run` to its end on `compute.num_workers` workers, 0: in this process.

    UserError when workers were lost more often than `compute.max_failures`.
    """
    from pipelines import worker

    assert compute.num_workers != "auto"
    if compute.num_workers == 0:
        worker.train(str(run.folder), attempt, str(extractor), _local_device(compute))
        return
    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_SETTINGS.items()})
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    _connect(ray)
    num_workers = int(compute.num_workers)
    use_gpu = _use_gpu(compute, num_workers, ray)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"folder": str(run.folder), "attempt": attempt, "extractor": str(extractor)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=_resources(compute, num_workers, use_gpu, ray),
        ),
        run_config=RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=str(run.folder / "ray"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"run {run.name}: the workers failed: {_cause(error)}") from error


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

    worker.train(config["folder"], config["attempt"], config["extractor"], ray.train.torch.get_device())


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
    ray.init(address=address, log_to_driver=False, logging_level="error", **local)  # workers speak through events
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process before the run is marked


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
    total = ray.cluster_resources()
    cpus = compute.cpus_per_worker or max(1, total.get("CPU", 1) // num_workers)
    resources = {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}
    for kind, amount in resources.items():
        if amount * num_workers > total.get(kind, 0):
            raise UserError(
                f"{num_workers} workers of {amount:g} {kind} need {amount * num_workers:g},"
                f" the cluster has {total.get(kind, 0):g}: lower compute.num_workers or compute.cpus_per_worker"
            )
    return resources


def _local_device(compute: ComputeConfig) -> str:
    import torch

    wanted = torch.cuda.is_available() if compute.use_gpu == "auto" else compute.use_gpu
    return "cuda" if wanted else "cpu"


def _cause(error: BaseException) -> str:
    """The last line of the deepest cause that is worth reading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
