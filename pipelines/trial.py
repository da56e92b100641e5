"""One trial of a sweep, from rung to rung, in the process that it is given. Knows no Ray Tune."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from genmodels.checkpoint import Checkpoints
from genmodels.config import ComputeConfig
from pipelines.project import last_line
from pipelines.run import locked, owned
from pipelines.sweep import ENDED, REDUCTION, Trial

Report = dict[str, Any]
PATIENCE = 120.0  # seconds for a trial that another machine held
RUNG_STATES = "rungs"  # where a trial of PBT leaves its state at each rung


def advance(trial: Trial, rung: int, device: str) -> Report:
    """Trains to the rung of that index, or says what an earlier process reached there.

    Whatever goes wrong is the trial's end, with its reason, and not the sweep's.
    """
    info = trial.info
    if info["status"] == "failed":
        return _failed(rung, info["reason"])
    last = rung + 1 == len(info["rungs"])
    if len(trial.scores()) <= rung or (last and not _has(trial, "finished")):
        if info["status"] in ENDED:
            return _report(rung, trial, done=True)
        try:
            _train(trial, rung, None if last else info["rungs"][rung], device)
        except Exception as error:  # a crash, no memory, lost workers: the trial is the worst, the sweep goes on
            _free(device)
            return _failed(rung, f"{type(error).__name__}: {last_line(error)}")
        events = trial.events()
        if events[-1]["type"] == "failed":
            return _failed(rung, events[-1]["reason"])
    scores = trial.scores()
    if len(scores) <= rung:
        return {**_report(rung, trial, done=True), "interrupted": True}
    if math.isnan(scores[rung]):
        return _failed(rung, f"no finite score at image {info['rungs'][rung]:,}")
    ended = info["status"] in ENDED and len(scores) == rung + 1
    return _report(rung + 1, trial, done=last or ended, score=scores[rung])


def take_state(trial: Trial, folder: Path) -> None:
    """Lets the trial go on from the state that another left at a rung."""
    from pipelines.worker import open_checkpoints

    with owned(trial):
        _copy(Checkpoints(folder, 1), open_checkpoints(trial))


def _copy(source: Checkpoints, target: Checkpoints) -> None:
    state = source.load_latest()
    assert state is not None  # every rung leaves one
    target.save(state["num_images"], state)
    target.wait()


def _train(trial: Trial, rung: int, until: int | None, device: str) -> None:
    """In this process where one worker is asked for, else as Ray Train's job within this trial."""
    from pipelines import cluster, worker

    info = trial.sweep.info
    extractor, compute = info["extractor"], ComputeConfig(**info["compute"])
    deadline = time.monotonic() + PATIENCE
    while locked(trial.folder / "lock") and time.monotonic() < deadline:
        time.sleep(1)  # NFS keeps a lost machine's lock until its lease ends
    with owned(trial) as attempt:
        if compute.worker_counts[-1] <= 1:
            worker.train(str(trial.folder), attempt, extractor, device, until=until)
        else:
            cluster.train(trial, attempt, Path(extractor), compute, until)
        if info["method"]["scheduler"] == "pbt" and until is not None and not _has(trial, "failed"):
            _copy(worker.open_checkpoints(trial), Checkpoints(trial.folder / RUNG_STATES / str(rung + 1), 1))


def _has(trial: Trial, kind: str) -> bool:
    return any(event["type"] == kind for event in trial.events())


def _report(rungs: int, trial: Trial, done: bool, score: float = math.nan) -> Report:
    """What the scheduler sees: its clock goes by powers of REDUCTION, whatever images the rungs lie at."""
    clock = REDUCTION ** (rungs - 1) if rungs else 0
    return {"clock": clock, "rungs": rungs, "score": score, "num_images": trial.num_images, "done": done, "reason": ""}


def _failed(rungs: int, reason: str) -> Report:
    clock = REDUCTION ** (rungs - 1) if rungs else 0
    return {"clock": clock, "rungs": rungs, "score": math.nan, "done": True, "reason": reason}


def _free(device: str) -> None:
    """Gives memory back for the next trial in this process."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
