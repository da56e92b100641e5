"""Progress that a person can follow: a live line a stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from genmodels.model import Stage
from pipelines.run import Event, Run, read_events

PLAIN_EVERY = 5.0  # seconds between plain lines
IMAGES_EVERY = 10.0  # and between those of images being prepared
NUM_TERMS = 4  # of a step's losses and statistics that fit a line


class Console:
    """Follows a run's events from a thread of its own and prints them."""

    def __init__(self, run: Run, stages: tuple[Stage, ...]):
        self.run = run
        self.ends = {stage.name: sum(s.num_images for s in stages[: i + 1]) for i, stage in enumerate(stages)}
        self._offset = read_events(run.events_file)[1]  # only what happens from now on
        self._stop = threading.Event()
        self._printed = 0.0
        self._live = _LiveLines(stages) if sys.stdout.isatty() else None
        self._thread = threading.Thread(target=self._follow, name="console", daemon=True)

    def __enter__(self) -> Console:
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(5)
        if self._live:
            self._live.stop()

    def _follow(self) -> None:
        while True:
            last = self._stop.is_set()
            events, self._offset = read_events(self.run.events_file, self._offset)
            for event in events:
                self._show(event)
            if last:
                return
            self._stop.wait(0.3)

    def _show(self, event: Event) -> None:
        shown = event["num_images"]
        if event["type"] == "started":
            for note in event["notes"]:
                self._print(f"warning: {note}")
            self._print(
                f"{'goes on' if shown else 'starts'} from image {shown:,} on {event['workers']} x {event['device']}"
            )
        elif event["type"] == "snapshot":
            self._print(f"{shown:>9,} images  score {event['score']:.4g}  {self.run.folder / event['picture']}")
        elif event["type"] == "log" and self._live:
            self._live.update(event["values"]["stage"], shown, event["values"])
        elif event["type"] == "log" and time.monotonic() - self._printed > PLAIN_EVERY:
            self._printed = time.monotonic()
            values = event["values"]
            end = self.ends[values["stage"]]
            rate = values["images_per_second"]
            print(
                f"{values['stage']}: {shown:,}/{end:,} images, {rate:,.0f}/s, {terms(values)},"
                f" stage done in {max(0, end - shown) / rate:,.0f} s",
                flush=True,
            )

    def _print(self, line: str) -> None:
        if self._live:
            self._live.print(line)
        else:
            print(line, flush=True)


class _LiveLines:
    """One progress bar a stage, through rich."""

    def __init__(self, stages: tuple[Stage, ...]):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.stages = stages
        self.tasks: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
        )
        self.start, self.stop, self.print = self.progress.start, self.progress.stop, self.progress.console.print

    def update(self, stage: str, num_images: int, values: Event) -> None:
        """Moves the stage's bar."""
        start = 0
        for known in self.stages:
            if known.name == stage:
                break
            start += known.num_images
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=known.num_images, rate="", terms="")
        done = min(num_images - start, known.num_images)
        rate = f"{values['images_per_second']:,.0f}"
        self.progress.update(self.tasks[stage], completed=done, rate=rate, terms=terms(values))


def terms(values: Event) -> str:
    """The first few loss terms of a log event."""
    names = [name for name in values if "/" in name and not name.startswith("stage/") and "gradient_norm" not in name]
    return "  ".join(f"{name} {values[name]:.3g}" for name in names[:NUM_TERMS])


class ImageProgress:
    """Counts images while a data set is prepared: call it with (done, total). Silent where there is nothing to do."""

    def __init__(self, name: str, console: Any = None):
        from rich.console import Console as Terminal

        self.name = name
        self._terminal = console or Terminal(file=sys.stdout)
        self._live: Any = None
        self._total = self._done = self._before = 0
        self._started = self._first = self._shown = time.monotonic()

    def __enter__(self) -> ImageProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` images are done, if it is time to."""
        now = time.monotonic()
        if not self._done:  # listing a source and starting processes says nothing about the rate
            self._first = self._shown = now
            self._before = done - 1  # by a run that was killed
        self._done, self._total = done, total
        if self._terminal.is_terminal:
            if not self._live or now - self._shown > 0.1 or done == total:
                self._shown = now
                self._update(self._rate(now))
        elif now - self._shown > IMAGES_EVERY:
            self._shown, rate = now, self._rate(now)
            left = (total - done) / rate
            print(f"{self.name}: {done:,}/{total:,} images, {rate:,.0f}/s, done in {left:,.0f} s", flush=True)

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()
        if self._done and exc[0] is None:
            seconds = max(time.monotonic() - self._started, 1e-3)
            num = self._total - self._before
            print(f"{self.name}: {num:,} images in {seconds:,.1f} s, {num / seconds:,.0f}/s", flush=True)

    def _rate(self, now: float) -> float:
        return (self._done - 1 - self._before) / max(now - self._first, 1e-3)

    def _update(self, rate: float) -> None:
        if not self._live:
            self._live = self._bar()
            self._live.start()
        self._live.update(self._live.task_ids[0], completed=self._done, total=self._total, rate=f"{rate:,.0f}")

    def _bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s"),
            TimeRemainingColumn(),
            console=self._terminal,
            transient=True,  # the line at the end takes its place
        )
        progress.add_task(self.name, total=None, rate="")
        return progress
