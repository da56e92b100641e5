"""Micro-batching: what requests wait for together is made together, and comes out as if each were alone."""

import threading

import pytest
import torch

from genmodels import export
from genmodels.model import model_names
from genmodels.pictures import to_uint8
from pipelines.engine import BATCH, Busy, Closed, Engine, Job


class Held:
    """A sampler whose first batch waits until it is let go, so that others gather behind it."""

    def __init__(self, sampler: export.Sampler):
        self.sampler, self.begun, self.go = sampler, threading.Event(), threading.Event()

    def decode(self, latents, cond):
        self.begun.set()
        assert self.go.wait(60)
        return self.sampler.decode(latents, cond)


def job(sampler: export.Sampler, num: int, seed: int) -> Job:
    return Job(*sampler.inputs(num, seed))


@pytest.fixture
def held(exported):
    """An engine, its sampler, and the sizes of its batches; the first job is held."""
    sampler, sizes = Held(export.load(exported("vae"))), []
    engine = Engine(sampler, 100, sizes.append)
    first = job(sampler.sampler, 1, 0)
    engine.submit(first)
    assert sampler.begun.wait(60)
    yield engine, sampler, sizes
    sampler.go.set()
    engine.close()


@pytest.mark.parametrize("name", model_names())
def test_an_image_is_the_same_whoever_else_asks(name, exported):
    sampler = export.load(exported(name))
    engine = Engine(sampler, 10_000)
    jobs = {(num, seed): job(sampler, num, seed) for seed, num in enumerate([1, 7, 16, 3, 20, 5, 2])}
    for each in jobs.values():
        engine.submit(each)
    for (num, seed), each in jobs.items():
        assert (to_uint8(each.images.result(60)) == to_uint8(sampler.sample(num, seed))).all()
    engine.close()


def test_what_gathers_meanwhile_is_one_batch_of_bounded_size(held):
    engine, sampler, sizes = held
    jobs = [job(sampler.sampler, 10, seed) for seed in range(8)]
    for each in jobs:
        engine.submit(each)
    assert engine.waiting == 80
    sampler.go.set()
    assert all(len(each.images.result(60)) == 10 for each in jobs)
    assert sizes == [1, BATCH // 10 * 10, 80 - BATCH // 10 * 10] and engine.waiting == 0


def test_too_much_waiting_is_refused_and_what_waits_is_made_before_the_end(held):
    engine, sampler, _ = held
    waiting = job(sampler.sampler, 64, 1)
    engine.submit(waiting)
    with pytest.raises(Busy):
        engine.submit(job(sampler.sampler, 37, 2))
    sampler.go.set()
    engine.close()
    assert len(waiting.images.result(0)) == 64
    with pytest.raises(Closed):
        engine.submit(job(sampler.sampler, 1, 3))


def test_what_nobody_waits_for_any_more_is_not_made(held):
    engine, sampler, sizes = held
    given_up, wanted = job(sampler.sampler, 5, 1), job(sampler.sampler, 2, 2)
    engine.submit(given_up)
    engine.submit(wanted)
    assert given_up.images.cancel()
    sampler.go.set()
    assert len(wanted.images.result(60)) == 2
    assert sizes == [1, 2]


def test_a_fault_reaches_those_who_wait_and_the_next_are_served(exported):
    sampler = export.load(exported("vae"))
    engine = Engine(sampler, 100)
    broken = Job(torch.zeros(1, 3), {})
    engine.submit(broken)
    with pytest.raises(RuntimeError, match="shape"):
        broken.images.result(60)
    after = job(sampler, 2, 0)
    engine.submit(after)
    assert len(after.images.result(60)) == 2
    engine.close()
