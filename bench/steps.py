"""Training steps and sampling of every model against its plain script, and the peak memory of both."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.cases import CASES, Case
from bench.report import Row, alternate, row
from genmodels.trainer import to_float

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_AIM = {32: 2.5, 64: 3.2, 128: 3.5}  # bf16, images a call: the case's batch
MEMORY_AIM = {"fp32": 1 / 0.85, "bf16": 1 / 0.6}  # the plain step's peak over ours, ProGAN at 64 px
Action = Callable[[], object]


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; without, bf16 is slower than fp32 and no aim applies."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def both_sides(case: Case, precision: str, device: str = "cpu") -> tuple[Action, Action]:
    """One round of all phases from the same weights, on batches that lie on the device; the script's is in fp32."""
    trainer = case.trainer(precision, device)
    with torch.device(device):
        script = case.script(trainer.model)
    batch = {key: value.to(device) for key, value in case.batch(0).items()}
    loaded = {key: batch[key] for key in trainer.model.batch_keys}
    in_memory = {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}

    def ours() -> None:
        for _ in range(case.period):
            trainer.train_step(trainer._to_device(loaded))
        trainer._interval.values.clear()

    def plain() -> None:
        for _ in range(case.period):
            script.step(in_memory)

    return ours, plain


def seconds(action: Action, least: float = 0.3) -> float:
    """Of one call: CPU time where there is one thread, as others share the machine, else wall time."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start, calls = clock(), 0
    while not calls or clock() - start < least:
        action()
        calls += 1
    return (clock() - start) / calls


def step_rows(only: str, rounds: int, threads: int, precision: str) -> Iterator[Row]:
    """Every case whose name has `only` in it, as images/s."""
    torch.set_num_threads(threads)
    for case in CASES:
        name = f"step {case.name}, batch {case.batch_size}, {precision}, {threads} thread{'s' * (threads > 1)}"
        if only not in name:
            continue
        yield compare(name, case, both_sides(case, precision), rounds, aim_of(case.aim.get(precision), precision))


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and products; torch's own counter fails at double backward."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `func`."""
        outcome = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=outcome)
        return outcome


def limit_rows(only: str, rounds: int) -> Iterator[Row]:
    """Every case against the time that its convolutions and matrix products take at the rate of a large product."""
    torch.set_num_threads(1)
    matrix = torch.randn(1024, 1024)
    for case in CASES:
        name = f"share of the matrix rate, {case.name}, fp32, 1 thread"
        if only not in name:
            continue
        ours, _ = both_sides(case, "fp32")
        with Operations() as counter:
            ours()
        products = counter.total / (2 * len(matrix) ** 3)
        ratios, mine, product = alternate(partial(seconds, ours), partial(seconds, lambda: matrix @ matrix), rounds)
        ratios, limit = [products * ratio for ratio in ratios], products * product
        gc.collect()
        yield row(name, ratios, None, f"{counter.total / mine / 1e9:.3g} GFLOP/s", f"{counter.total / limit / 1e9:.3g}")


def sampling_rows(only: str, rounds: int, precision: str) -> Iterator[Row]:
    """ProGAN's generator without gradients, ours in `precision`, the script's in fp32."""
    torch.set_num_threads(1)
    for case in CASES:
        name = f"sampling {case.name}, {precision}, 1 thread"
        if case.model != "progan" or case.image_size < 32 or only not in name:
            continue
        trainer = case.trainer()
        model, script, progress = trainer.model.eval(), case.script(trainer.model), trainer.progress()
        latents = torch.randn(case.batch_size, 128)

        @torch.no_grad()
        def ours(model=model, progress=progress, latents=latents) -> None:  # type: ignore[no-untyped-def]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                model.generate(latents, {}, progress)

        @torch.no_grad()
        def plain(script=script, latents=latents) -> None:  # type: ignore[no-untyped-def]
            script.generator(latents)

        aim = SAMPLING_AIM[case.image_size] if precision == "bf16" else None
        yield compare(name, case, (ours, plain), rounds, aim_of(aim, precision))


def aim_of(aim: float | None, precision: str) -> float | None:
    """None where the aim is for hardware that this is not."""
    return aim if precision == "fp32" or has_bf16() else None


def compare(name: str, case: Case, sides: tuple[Action, Action], rounds: int, aim: float | None) -> Row:
    """One row of seconds, shown as images/s."""
    for side in sides:
        side()  # the first call builds kernels
    ratios, ours, plain = alternate(lambda: seconds(sides[0]), lambda: seconds(sides[1]), rounds)
    images = case.batch_size * (case.period if name.startswith("step") else 1)
    gc.collect()
    return row(name, ratios, aim, f"{images / ours:.3g} images/s", f"{images / plain:.3g}")


def memory_rows(only: str, rounds: int, precision: str) -> Iterator[Row]:
    """Peak resident memory that three steps of ProGAN at 64 px add to their process, each in its own."""
    name = f"memory of a step, progan 64 px, {precision}"
    if only in name:
        ratios, ours, plain = alternate(lambda: peak("ours", precision), lambda: peak("plain", precision), rounds)
        yield row(name, ratios, aim_of(MEMORY_AIM[precision], precision), f"{ours:.0f} MB", f"{plain:.0f} MB")


def peak(side: str, precision: str) -> float:
    """MB, from a process of its own."""
    command = [sys.executable, "-m", "bench.steps", side, precision]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def measure_peak(side: str, precision: str) -> float:
    """What `peak` runs."""
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.name == "progan 64 px")
    action = both_sides(case, precision)[side == "plain"]
    before = resident()
    for _ in range(3):
        action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before


def resident() -> float:
    """MB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    print(measure_peak(*sys.argv[1:3]))
