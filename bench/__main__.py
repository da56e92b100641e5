"""Measures speed: python -m bench [--only TEXT]; a Markdown table on stdout, rows in bench/results.json.

A ratio above 1 says that ours is faster, or smaller. Exit code 1 names the rows under their aim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from bench.end_to_end import end_to_end_rows
from bench.loader import loader_rows, stage_rows
from bench.report import Row, conclude, show
from bench.start_up import start_up_rows
from bench.steps import limit_rows, memory_rows, sampling_rows, step_rows


def main(
    only: Annotated[str, typer.Option(help="rows whose name has this in it, such as 'progan 64 px, batch'")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="pairs of measurements a row")] = 5,
) -> None:
    """Measures every row that --only leaves."""
    conclude(show(rows(only, rounds)))


def rows(only: str, rounds: int) -> Iterator[Row]:
    """All of them, quick ones first."""
    yield from start_up_rows(only, rounds)
    for precision in ("fp32", "bf16"):
        for threads in (1, 2):
            yield from step_rows(only, rounds, threads, precision)
        yield from sampling_rows(only, rounds, precision)
        yield from memory_rows(only, rounds, precision)
    yield from limit_rows(only, rounds)
    yield from loader_rows(only, rounds)
    yield from stage_rows(only, rounds)
    yield from end_to_end_rows(only, min(rounds, 3))


if __name__ == "__main__":
    typer.run(main)
