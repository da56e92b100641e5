"""On a GPU: images/s of training steps in bf16 against the plain script, and that no step waits for the device.

    python -m bench.gpu

Needs CUDA and neither Ray nor data; it has not run on a GPU yet. No CUDA graphs: a penalty's double backward and the
trainer's host-side noise seeds would have to be captured stage by stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases import Case, progan
from bench.report import Row, conclude, row, show
from genmodels.trainer import to_float

CASES = [
    Case("dcgan", 64, 128, {"discriminator_width": 128}, {"latent_dim": 100, "width": 128}),
    Case("stargan", 128, 16, {}, {"num_attributes": 5, "width": 64, "num_blocks": 6}, period=5),
    Case("cyclegan", 256, 1, {}, {"width": 64, "num_blocks": 9}),
    *(progan(size, batch) for size, batch in ((16, 128), (64, 32), (128, 16))),
]
AIM, NUM_STEPS = 3.0, 100
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def rows() -> Iterator[Row]:
    """Speed, then the calls that wait for the device in 100 steps: none."""
    for case in CASES:
        trainer = case.trainer("bf16", "cuda")
        script = case.script(trainer.model).cuda()
        batch = {key: value.cuda() for key, value in case.batch(0).items()}
        floats = {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}
        ours = {key: batch[key] for key in trainer.model.batch_keys}
        sides: list[Callable[[], Any]] = [
            lambda trainer=trainer, ours=ours: trainer.train_step(trainer._to_device(ours)),
            lambda script=script, floats=floats: script.step(floats),
        ]
        with torch.device("cuda"):  # the script draws its noise there
            pairs = [[seconds(side) for side in sides] for _ in range(5)]
        rates = [f"{case.batch_size / min(times):,.0f}" for times in zip(*pairs, strict=True)]
        name = f"GPU step {case.name}, batch {case.batch_size}, bf16"
        yield row(name, [plain / own for own, plain in pairs], AIM, f"{rates[0]} images/s", rates[1])
        yield row(f"{name}, steps that do not wait", [1 - waits(sides[0]) / NUM_STEPS], 1.0)
        trainer._interval.values.clear()


def seconds(step: Callable[[], Any]) -> float:
    """Of one step, from ten that are waited for once."""
    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 10


def waits(step: Callable[[], Any]) -> int:
    """Calls in 100 steps that wait for the device."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(NUM_STEPS):
            step()
    return sum(event.count for event in profiler.key_averages() if event.key in WAITS)


if __name__ == "__main__":
    conclude(show(rows()))
