"""Progress while a data set is prepared: a live line on a terminal, few plain ones elsewhere."""

import io

import pytest
from rich.console import Console

from pipelines import console
from pipelines.console import ImageProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_progress_is_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with ImageProgress("toy") as progress:
        clock[0] += 20  # until the first image is there
        for done in range(1, 51):
            clock[0] += 0.5
            progress(done, 50)
    assert capsys.readouterr().out.splitlines() == [
        "toy: 22/50 images, 2/s, done in 14 s",
        "toy: 43/50 images, 2/s, done in 4 s",
        "toy: 50 images in 45.0 s, 1/s",
    ]


def test_on_a_terminal_progress_is_one_live_line(clock, capsys):
    screen = io.StringIO()
    with ImageProgress("[bold]toy", Console(file=screen, force_terminal=True, width=100)) as progress:
        for done in range(1, 51):
            clock[0] += 0.5
            progress(done, 50)
    assert "[bold]toy" in screen.getvalue() and "50/50" in screen.getvalue() and "2 images/s" in screen.getvalue()
    assert capsys.readouterr().out == "[bold]toy: 50 images in 25.0 s, 2/s\n"


def test_a_failed_preparation_ends_its_line_and_claims_nothing(clock, capsys):
    screen = io.StringIO()
    with (
        pytest.raises(OSError, match="full"),
        ImageProgress("toy", Console(file=screen, force_terminal=True)) as progress,
    ):
        clock[0] += 1
        progress(1, 50)
        raise OSError("full")
    assert capsys.readouterr().out == "" and screen.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
