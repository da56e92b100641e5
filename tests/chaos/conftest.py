"""A table of the faults that were injected: each row holds if its test passed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from conftest import Project, make_project

from chaos.harness import RAY_SESSIONS, Scale, Strike, Training, detection

TABLE = Path(__file__).parents[2] / "data" / "chaos"  # and .md, .json
SEED = int(os.environ.get("GENMODELS_CHAOS_SEED", random.SystemRandom().randrange(10**6)))


@dataclass(frozen=True)
class Row:
    """One fault; None where a column has no meaning for it."""

    number: int  # in RELIABILITY.md, and below
    fault: str
    injected: str
    detected: float | None = None  # seconds after the fault
    resumed: float | None = None  # seconds after the fault, or after the command was given again
    repeated: int | None = None  # images
    equal: bool | None = None  # the final weights, or whatever the fault could have changed


@pytest.fixture
def table(request) -> Callable[..., Row]:
    """Notes a row; call it before the row is judged."""

    def add(*args, **kwargs) -> Row:
        row = Row(*args, **kwargs)
        request.node.user_properties.append(("chaos", asdict(row)))
        return row

    return add


@pytest.fixture
def restart_row(table) -> Callable[..., Row]:
    """Notes the row of a fault after which a training went on."""

    def add(
        number: int, fault: str, training: Training, strike: Strike, expected: Training, sessions=RAY_SESSIONS, **values
    ):
        start = training.resumption(strike)
        lost = strike.num_images - start["num_images"]  # below 0 where other ranks went on to a checkpoint
        measured = {
            "detected": detection(strike, sessions),
            "resumed": start["time"] - strike.time,
            "repeated": max(0, lost),
            "equal": training.weights == expected.weights,
        }
        return table(number, fault, f"rank {strike.rank}, step {strike.step}", **(measured | values))

    return add


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def chaos_project(tmp_path_factory, sprites_data) -> Project:
    """A project whose trainings run as commands, each in a storage folder of its own."""
    return make_project(tmp_path_factory.mktemp("chaos"), sprites_data)


@pytest.fixture(scope="session")
def reference(chaos_project) -> Callable[[Scale, int], Training]:
    """An uninterrupted training; each runs once."""
    done: dict[tuple[Scale, int], Training] = {}

    def trained(scale: Scale, num_workers: int) -> Training:
        if (scale, num_workers) not in done:
            name = f"reference-{scale.num_images}-{num_workers}"
            training = Training(chaos_project, name, scale, num_workers, ("record",))
            training.finish()
            done[scale, num_workers] = training
        return done[scale, num_workers]

    return trained


def pytest_terminal_summary(terminalreporter) -> None:
    rows = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            notes = [value for name, value in getattr(report, "user_properties", ()) if name == "chaos"]
            rows += [{**note, "holds": report.passed} for note in notes if getattr(report, "when", "") == "call"]
    if rows:
        rows.sort(key=lambda row: row["number"])
        lines = markdown(rows)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.with_suffix(".md").write_text("\n".join(lines) + "\n")
        TABLE.with_suffix(".json").write_text(json.dumps({"seed": SEED, "rows": rows}, indent=1))
        terminalreporter.section(f"faults, seed {SEED}")
        for line in lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"also in {TABLE}.md and .json")


def markdown(rows: list[dict]) -> list[str]:
    """The table, in columns of even width."""
    head = ["row", "fault", "injected", "detected in", "resumed in", "work repeated", "weights equal", "holds"]
    cells = [head] + [[_cell(name, value) for name, value in row.items()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    units = {"detected": "{:.1f} s", "resumed": "{:.1f} s", "repeated": "{} images"}
    return units.get(name, "{}").format(value)
