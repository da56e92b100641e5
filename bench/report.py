"""Rows of measurements: ratios of neighbouring rounds, as JSON, as Markdown, and as an exit code."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Row:
    """One comparison: how often ours beats the other side, and what it should be at least (None: only told)."""

    name: str
    ratio: float
    min: float
    max: float
    aim: float | None
    ours: str = ""  # the two sides in words, medians
    other: str = ""

    @property
    def misses(self) -> bool:
        """Whether the median is under the aim."""
        return self.aim is not None and self.ratio < self.aim


def row(name: str, ratios: list[float], aim: float | None, ours: str = "", other: str = "") -> Row:
    """The median of ratios, with the extremes."""
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return Row(name, round(middle, 3), round(low, 3), round(high, 3), aim, ours, other)


def alternate(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[list[float], float, float]:
    """A B A B: ratios other / ours of neighbours, and the median of each side. Give seconds, or bytes."""
    pairs = [(ours(), other()) for _ in range(rounds)]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return [b / a for a, b in pairs], medians[0], medians[1]


def show(rows: Iterable[Row]) -> list[Row]:
    """Prints a Markdown table, each line as soon as it is measured, and returns the rows."""
    print("| what | ours | other | ratio: median (min, max) | aim |\n|---|---|---|---|---|", flush=True)
    shown = []
    for each in rows:
        aim = "" if each.aim is None else f"{each.aim:g}{' missed' if each.misses else ''}"
        ratio = f"{each.ratio:.2f} ({each.min:.2f}, {each.max:.2f})"
        print(f"| {each.name} | {each.ours} | {each.other} | {ratio} | {aim} |", flush=True)
        shown.append(each)
    return shown


def conclude(rows: list[Row]) -> None:
    """Writes bench/results.json, rows of other runs kept; exit code 1 names what missed its aim."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {each.name for each in rows}
    everything = [old for old in kept if old["name"] not in names] + [asdict(each) for each in rows]
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n")
    if below := [each.name for each in rows if each.misses]:
        print(f"under their aim: {'; '.join(below)}", file=sys.stderr)
        raise SystemExit(1)
