"""A real PostgreSQL on 127.0.0.1 for tests, from Debian's package."""

import os
import shutil
import subprocess
from pathlib import Path

from swift_server import free_ports


class Postgres:
    """A server with its data in a folder of its own; it will not run as root, so there as user postgres."""

    def __init__(self, folder: Path):
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert programs, "needs PostgreSQL: apt-get install postgresql"
        self._programs, self._data, self.port = programs[-1], folder / "data", free_ports(1)[0]
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._data}"
        self._run("pg_ctl", "start", "--wait", f"--log={self._data}/log", f"--options={options}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate")

    def _run(self, program: str, *arguments: str) -> None:
        user = {"user": "postgres"} if os.geteuid() == 0 else {}
        command = [str(self._programs / program), f"--pgdata={self._data}", *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **user)
