"""Ends what a killed driver leaves of its local Ray, in seconds; run beside the driver, on its standard input.

Ray's processes end with their driver, but its two agents first try for a minute to tell a server that is gone.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

INTERVAL = 3.0  # seconds between looks at the driver's family
ROUNDS = 2  # of killing: the second takes what the first one's victims were just starting
MARK = "GENMODELS_DRIVER"  # in the environment of all that it starts, also after the last look

_pipe = -1  # open as long as this process lives


def start() -> None:
    """Starts the process that ends this one's children after it, once."""
    global _pipe
    if _pipe >= 0:
        return
    # Its own session: Ctrl-C reaches the driver alone. The pipe closes when the driver ends, however it does.
    os.environ[MARK] = uuid.uuid4().hex
    arguments = [sys.executable, __file__, str(os.getpid()), os.environ[MARK]]
    end, _pipe = os.pipe()
    reaper = subprocess.Popen(arguments, stdin=end, start_new_session=True)
    reaper.returncode = 0  # nobody waits for it; Popen would warn of that at exit
    os.close(end)


def main(driver: int, mark: str) -> None:
    """Watches the driver's family until standard input ends, then kills who is left of it."""
    import psutil

    family: set[psutil.Process] = set()  # a process object knows its start time, so no reused number is hit
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        with suppress(psutil.Error):
            family |= set(psutil.Process(driver).children(recursive=True))
    for _ in range(ROUNDS):
        family = (family | set(_marked(mark))) - {psutil.Process()}
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=INTERVAL)


def _marked(mark: str) -> Iterator[psutil.Process]:
    """The processes that have the driver's mark."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
