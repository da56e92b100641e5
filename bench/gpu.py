"""On a GPU: training steps in bf16 against the plain script's in fp32, and how much of the device they use.

    python -m bench.gpu [--only TEXT]
    python -m bench.scaling --device cuda       # two and four ranks on the one GPU, over gloo

Needs neither Ray nor data. The script's convolutions are in TF32, as torch has it where nothing is said. It has not run
on a GPU yet; `tests/bench/test_gpu.py` runs it on the CPU. No CUDA graphs: a penalty's double backward and the
trainer's host-side noise seeds would have to be captured stage by stage.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch.autograd import DeviceType
from torch.profiler import profile

from bench import steps
from bench.cases import Case
from bench.report import Row, conclude, row, show
from bench.steps import Operations


def progan(size: int, batch_size: int) -> Case:
    """The paper's channels, and about the batches of its one-GPU recipe."""
    return Case(
        "progan", size, batch_size, {"start_size": size}, {"latent_dim": 512, "fmap_base": 8192, "fmap_max": 512}
    )


CASES = [
    Case("dcgan", 64, 128, {"discriminator_width": 128}, {"latent_dim": 100, "width": 128}),
    Case("stargan", 128, 16, {}, {"num_attributes": 5, "width": 64, "num_blocks": 6}, period=5),
    Case("cyclegan", 256, 1, {}, {"width": 64, "num_blocks": 9}),
    *(progan(size, 128) for size in (4, 8, 16)),
    *(progan(size, batch) for size, batch in ((32, 64), (64, 32), (128, 16), (256, 8), (512, 4), (1024, 4))),
]
AIM, BUSY_AIM, RATE_AIM = 3.0, 0.97, 0.35  # images/s over the plain script's; shares of time, and of the matrix rate
NUM_STEPS, NUM_PROFILED = 100, 10
Action = Callable[[], Any]


def main(
    only: Annotated[str, typer.Option(help="cases whose name has this in it, such as 'progan 64 px'")] = "",
) -> None:
    """Measures every case that --only leaves."""
    torch.zeros(1, device="cuda")  # where there is none, this says so
    conclude(show(rows([case for case in CASES if only in case.name], torch.device("cuda"))))


def rows(cases: Sequence[Case], device: torch.device) -> Iterator[Row]:
    """Four rows a case: speed, share of the matrix rate, share of the time that the device works, no waiting."""
    for case in cases:
        ours, plain = both_sides(case, device)
        name = f"GPU {case.name}, batch {case.batch_size}, bf16"
        pairs = [(seconds(ours, device), seconds(plain, device)) for _ in range(5)]
        peak = matrix_rate(device)
        step = min(own for own, _ in pairs)
        rates = [f"{case.batch_size * case.period / min(side):,.0f}" for side in zip(*pairs, strict=True)]
        yield row(f"{name}, step", [other / own for own, other in pairs], AIM, f"{rates[0]} images/s", rates[1])

        with Operations() as counter:
            ours()
        rate = counter.total / step
        aim = RATE_AIM if case.model == "progan" and case.image_size >= 128 else None
        words = f"{rate / 1e12:.3g} TFLOP/s", f"{peak / 1e12:.3g}"
        yield row(f"{name}, share of the matrix rate", [rate / peak], aim, *words)

        yield row(f"{name}, share of the time that the device works", [busy(ours, device) / step], BUSY_AIM)
        yield row(f"{name}, share of steps that do not wait", [1 - waits(ours, device) / NUM_STEPS], 1.0)


def both_sides(case: Case, device: torch.device) -> tuple[Action, Action]:
    """As `bench.steps` has them, ours in bf16; cuDNN is held to repeatable convolutions for ours, as in a training."""
    ours, plain = steps.both_sides(case, "bf16", str(device))

    def held(action: Action, deterministic: bool) -> None:
        torch.backends.cudnn.deterministic = deterministic
        action()

    return partial(held, ours, True), partial(held, plain, False)


def seconds(action: Action, device: torch.device, repeats: int = 10) -> float:
    """Of one call, of ten that are waited for once."""
    action()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large product in bf16."""
    size = 8192 if device.type == "cuda" else 256
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: matrix @ matrix, device)


def busy(action: Action, device: torch.device) -> float:
    """Seconds of a call that the device works, by the profiler; 0 where there is no device."""
    action()
    wait(device)
    with profile() as profiler:
        for _ in range(NUM_PROFILED):
            action()
        wait(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)  # microseconds
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    total = end = 0.0
    for start, stop in spans:  # streams may overlap
        total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
    return total / 1e6 / NUM_PROFILED


def waits(action: Action, device: torch.device) -> int:
    """How often the host waits for the device in a hundred calls."""
    if device.type != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(NUM_STEPS):
            action()
        torch.cuda.set_sync_debug_mode("default")
    return len(noted)


if __name__ == "__main__":
    typer.run(main)
