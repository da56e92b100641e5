"""Micro-batching: a loaded model's thread puts what several requests wait for into one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genmodels.export import CHUNK, Sampler
from genmodels.model import Batch

BATCH = 4 * CHUNK  # images that are made before the first of their requests is answered


class Busy(Exception):
    """Too many images wait already; the client may come again."""


class Closed(Exception):
    """The engine takes nothing more; another one has its place."""


@dataclass(eq=False)
class Job:
    """Latents and conditions [num, ...] of one request, and the images [num, C, H, W] that come of them."""

    latents: Tensor
    cond: Batch
    images: Future[Tensor] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind go into one batch."""
        return tuple((key, value.dtype, value.shape[1:]) for key, value in sorted(self.cond.items()))


class Engine:
    """Decodes jobs batch by batch, in the order of asking; an image does not depend on whose others are beside it."""

    def __init__(self, sampler: Sampler, max_waiting: int, made: Callable[[int], object] = lambda num: None):
        """max_waiting: images that may wait. made: is told how many images each batch had."""
        self.sampler, self._max_waiting, self._made = sampler, max_waiting, made
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that are asked for and not yet begun."""
        with self._changed:
            return sum(len(job.latents) for job in self._jobs)

    def submit(self, job: Job) -> None:
        """Takes a job; Busy if too much waits, Closed after `close`."""
        with self._changed:
            if self._closed:
                raise Closed
            if self._jobs and sum(len(each.latents) for each in self._jobs) + len(job.latents) > self._max_waiting:
                raise Busy
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Returns when everything that was asked for is made."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._make(batch)

    def _next_batch(self) -> list[Job]:
        """Waits for jobs; takes the first, and others of its kind up to BATCH images."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            batch: list[Job] = []
            num = 0
            for job in [job for job in self._jobs if job.kind == self._jobs[0].kind]:
                if batch and num + len(job.latents) > BATCH:
                    break
                batch.append(job)
                num += len(job.latents)
                self._jobs.remove(job)
            return batch

    def _make(self, batch: list[Job]) -> None:
        batch = [job for job in batch if job.images.set_running_or_notify_cancel()]
        if not batch:
            return
        cond = {key: torch.cat([job.cond[key] for job in batch]) for key in batch[0].cond}
        try:
            images = self.sampler.decode(torch.cat([job.latents for job in batch]), cond)
        except Exception as error:  # whatever a network does, those who wait are told
            for job in batch:
                job.images.set_exception(error)
            return
        self._made(len(images))
        for job, part in zip(batch, images.split([len(job.latents) for job in batch]), strict=True):
            job.images.set_result(part)
