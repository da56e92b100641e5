"""Ends what a killed driver leaves of its local Ray, in seconds; run beside the driver, on its standard input.

Ray's processes end with their driver, but its two agents first try for a minute to tell a server that is gone.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import suppress
from typing import IO

INTERVAL = 3.0  # seconds between looks at the driver's family

_pipe: IO[bytes] | None = None  # open as long as this process lives


def start() -> None:
    """Starts the process that ends this one's children after it, once."""
    global _pipe
    if _pipe:
        return
    # Its own session: Ctrl-C reaches the driver alone. The pipe closes when the driver ends, however it does.
    arguments = [sys.executable, __file__, str(os.getpid())]
    reaper = subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)
    reaper.returncode = 0  # nobody waits for it; Popen would warn of that at exit
    _pipe = reaper.stdin


def main(driver: int) -> None:
    """Watches the driver's family until standard input ends, then kills who is left of it."""
    import psutil

    family: set[psutil.Process] = set()  # a process object knows its start time, so no reused number is hit
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        with suppress(psutil.Error):
            family |= set(psutil.Process(driver).children(recursive=True))
    for process in family - {psutil.Process()}:
        with suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
