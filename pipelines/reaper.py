"""Ends what a killed driver leaves of its local Ray, in seconds; run beside the driver, on its standard input.

Ray's processes end with their driver, but its two agents first try for a minute to tell a server that is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO

MARK = "GENMODELS_DRIVER"  # environment variable that every process of this driver's Ray inherits


_pipe: IO[bytes] | None = None  # open as long as this process lives


def start() -> None:
    """Marks this process's children from now on, and starts the one that ends them after this process."""
    environment = dict(os.environ)
    os.environ[MARK] = str(os.getpid())
    arguments = [sys.executable, __file__, os.environ[MARK]]
    # Its own session: Ctrl-C reaches the driver alone. The pipe closes when the driver ends, however it does.
    global _pipe
    reaper = subprocess.Popen(arguments, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    reaper.returncode = 0  # nobody waits for it; Popen would warn of that at exit
    _pipe = reaper.stdin


def main(driver: str) -> None:
    """Waits for the end of standard input, then kills every process that carries the driver's mark."""
    import psutil

    sys.stdin.buffer.read()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == driver:
                process.kill()


if __name__ == "__main__":
    main(sys.argv[1])
