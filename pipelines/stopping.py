"""Ctrl-C and SIGTERM as a user means them: a checkpoint, then the end; once more: at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

GRACE = 20.0  # seconds for the checkpoint; a preempted machine has 30


class Asked(Protocol):
    """A run, or a sweep of them."""

    def ask(self, word: str) -> None:
        """Asks the workers for something."""


@contextmanager
def stoppable(run: Asked) -> Iterator[None]:
    """Asks the run's workers to stop at the first signal; the second, or GRACE, ends this process's work at once."""
    patience = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGINT))
    patience.daemon = True

    def ask(number: int, frame: Any) -> None:
        for kind in before:
            signal.signal(kind, signal.default_int_handler)
        run.ask("stop")
        print(f"stopping after a checkpoint, in {GRACE:.0f} s at most; once more: at once", file=sys.stderr, flush=True)
        patience.start()

    before = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        patience.cancel()
        for kind, handler in before.items():
            signal.signal(kind, handler)
