"""Commands side by side on one Ray: as many at a time as fit, one failing without harm to the others.

python pipelines/train.py --model all       # a training a model
python -m pipelines.fleet                   # DVC's stages of every model; what `make repro` runs
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import command, params, root, shards, storage

if TYPE_CHECKING:
    from genmodels.config import ComputeConfig, Params, RunConfig

POLL = 0.2  # seconds between looks at who has ended
PATIENCE = 60.0  # seconds that an interrupted command has for an orderly end


@command
def main(
    at_once: Annotated[int | None, typer.Option(min=1, help="models at a time; default: as many as fit")] = None,
) -> None:
    """Trains, evaluates and registers, by DVC, every model of params.yaml that has changed."""
    everything = params()
    stages = ("train", "evaluate", "register")
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    commands = {model: [*dvc, *(f"{stage}@{model}" for stage in stages)] for model in all_models(everything)}
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of DVC's `python`
    # DVC leaves its locks behind at SIGTERM; at Ctrl-C it waits for the command that it runs.
    if not show(run(commands, everything.compute, _published, signal.SIGINT, at_once)):
        raise SystemExit(1)


def _published(model: str) -> dict[str, Any]:
    """What DVC's stages have put out."""
    result = json.loads((root() / "data/models" / model / "run.json").read_text())
    return result | json.loads((root() / "data/versions" / f"{model}.json").read_text())


def all_models(everything: Params) -> list[str]:
    """Every model of params.yaml, from its end, where those are that take long."""
    return list(reversed(everything.models))


def train(
    everything: Params, configs: dict[str, RunConfig], options: list[str], recipe: str | None, out: Path | None
) -> None:
    """Trains several models with `options`, into OUT/MODEL each; SystemExit 1 where one fails.

    The same again repeats none that is finished, until all are: then it starts anew.
    """
    compute = everything.compute
    identity = hashlib.sha256(repr((sorted(configs), recipe, out and str(out.absolute()))).encode()).hexdigest()
    ledger = _Ledger(storage(compute) / f".fleet-{identity[:16]}.json", configs, everything)
    base = [sys.executable, "-m", "pipelines.train", *options]
    commands = {
        model: [*base, "--model", model, *(["--out", str(out / model)] if out else [])]
        for model in configs
        if model not in ledger.finished
    }
    for model in ledger.finished:
        print(f"{model}: finished before this fleet was interrupted, as {ledger.finished[model]['run']}", flush=True)

    def result(model: str) -> dict[str, Any]:
        return ledger.add(model, _last_result(configs[model], storage(compute)))

    before = [Outcome(model, 0.0, result=ledger.finished[model]) for model in ledger.finished]
    if not show([*before, *run(commands, compute, result)]):
        raise SystemExit(1)
    ledger.file.unlink(missing_ok=True)


class _Ledger:
    """What is finished of a fleet that is not, on disk."""

    def __init__(self, file: Path, configs: dict[str, RunConfig], everything: Params):
        self.file = file
        self._digests = {
            model: config.digest(everything.datasets[config.dataset].model_dump_json())
            for model, config in configs.items()
        }
        known = json.loads(file.read_text()) if file.is_file() else {}
        self.finished: dict[str, dict[str, Any]] = {
            model: entry["result"]
            for model, entry in known.items()
            if entry["config"] == self._digests.get(model)  # else its settings have been changed since
        }

    def add(self, model: str, result: dict[str, Any]) -> dict[str, Any]:
        from genmodels.files import write_json

        self.finished[model] = result
        entries = {name: {"config": self._digests[name], "result": done} for name, done in self.finished.items()}
        write_json(self.file, entries)
        return result


def _last_result(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What the newest finished run of a configuration came to."""
    from genmodels.data.shards import open_shards
    from pipelines.run import newest

    run = newest(folder, config, open_shards(shards(config.dataset)).spec.digest)
    return run.info["result"] if run else {}


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `error` is one line, None where it succeeded."""

    name: str
    seconds: float
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


class _Child:
    """A command under way, in a session of its own: Ctrl-C reaches its parent alone, which passes it on once."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str]):
        self.name, self._started, self._error = name, time.monotonic(), ""
        self.process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.strip():
                print(f"{self.name}: {line.rstrip()}", flush=True)
                if line.startswith("error: ") or not self._error.startswith("error: "):
                    self._error = line.strip()

    def signal(self, number: int) -> None:
        """Sends SIGTERM to the command, other signals to all that it has started, as a terminal does."""
        with suppress(ProcessLookupError):
            (os.kill if number == signal.SIGTERM else os.killpg)(self.process.pid, number)

    def outcome(self, result: Callable[[str], dict[str, Any]]) -> Outcome:
        """How it ended."""
        self._reader.join(5)
        assert self.process.stdout
        if not self._reader.is_alive():  # else something that it left behind holds the pipe open
            self.process.stdout.close()
        seconds, code = time.monotonic() - self._started, self.process.returncode
        if code < 0:
            return Outcome(self.name, seconds, f"killed by signal {-code}")
        if code:
            return Outcome(self.name, seconds, self._error.removeprefix("error: ") or f"exit code {code}")
        return Outcome(self.name, seconds, result=result(self.name))


def run(
    commands: dict[str, list[str]],
    compute: ComputeConfig,
    result: Callable[[str], dict[str, Any]],
    interrupt: int = signal.SIGTERM,
    at_once: int | None = None,
) -> list[Outcome]:
    """Runs commands that train, each on its part of one cluster: that of RAY_ADDRESS, else one of their own.

    Ctrl-C or SIGTERM sends all of them `interrupt` and waits for their end.
    """
    from pipelines import cluster, reaper

    if not commands:
        return []
    reaper.start()
    _handle(signal.default_int_handler)
    waiting, running, outcomes = list(commands), list[_Child](), list[Outcome]()
    with cluster.shared(compute) as (room, environment):
        interrupts = _Interrupts()
        _handle(interrupts)
        try:
            while waiting or running:
                if interrupts.seen:
                    raise KeyboardInterrupt
                while waiting and len(running) < (at_once or room()):
                    name = waiting.pop(0)
                    running.append(_Child(name, commands[name], environment))
                    print(f"{name}: started, {len(running)} at a time, {len(waiting)} wait", flush=True)
                time.sleep(POLL)
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    outcomes.append(child.outcome(result))
                    print(f"{child.name}: {_sentence(outcomes[-1])}", flush=True)
        finally:
            _end(running, interrupt)
    return outcomes


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)  # a shell's background job ignores it, and so would its children


class _Interrupts:
    """A signal handler. The first Ctrl-C or SIGTERM waits to be seen, so that no child is lost while it starts.

    The next raises KeyboardInterrupt wherever this process stands.
    """

    seen = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.seen += 1
        if self.seen > 1:
            raise KeyboardInterrupt


def _end(running: Iterable[_Child], interrupt: int) -> None:
    """Interrupts what is left; kills what does not end by itself, at once where that is interrupted again."""
    try:
        for child in running:
            child.signal(interrupt)
        deadline = time.monotonic() + PATIENCE
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in running:
            child.signal(signal.SIGKILL)
            child.process.wait()


def _sentence(outcome: Outcome) -> str:
    return f"failed after {outcome.seconds:,.0f} s" if outcome.error else f"done in {outcome.seconds:,.0f} s"


def show(outcomes: list[Outcome]) -> bool:
    """Prints a row a command; whether all succeeded."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "images", "score", "version", "seconds", "")
    for outcome in outcomes:
        done = outcome.result
        score = f"{done['score']:.4g}" if "score" in done else ""
        images = f"{done['images']:,}" if "images" in done else ""
        seconds = f"{outcome.seconds:,.0f}" if outcome.seconds else ""
        table.add_row(outcome.name, images, score, str(done.get("version", "")), seconds, outcome.error or "done")
    Console().print(table)
    return not any(outcome.error for outcome in outcomes)


if __name__ == "__main__":
    typer.run(main)
