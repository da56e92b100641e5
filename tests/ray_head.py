"""A Ray head for tests, as `ray start` makes it; and what keeps such a head apart from all else on this machine."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from swift_server import free_ports

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's own way to listen nowhere else; Linux has it too


def clean_environment() -> dict[str, str]:
    """This process's, without what Ray, MLflow and earlier tests put there; with our `ray` in front."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "GENMODELS_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1"}


def namespace() -> list[str]:
    """The command that gives another processes of its own: root may; some systems let everybody."""
    alone = ["--pid", "--fork", "--kill-child", "--mount-proc"]
    for prefix in (["unshare", *alone], ["unshare", "--user", "--map-current-user", *alone]):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    others = [process for process in psutil.process_iter(["name"]) if process.info["name"] in ("raylet", "gcs_server")]
    assert not others, "needs a process namespace (unshare --pid): `ray stop` would end the Ray that runs here"
    return []


def processes_of(*folders: Path) -> list[psutil.Process]:
    """Those that keep Ray's files in one of the folders: $RAY_TMPDIR passes from process to process."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") in map(str, folders):
                found.append(process)
    return found


class RayHead:
    """Runs from its making until `stop`; `environment` says who may use it."""

    def __init__(self, folder: Path, dashboard: bool = False, **environment: str):
        folder.mkdir()
        port, client_port, dashboard_port, agent_port = free_ports(4)
        self.folder, self.dashboard = folder, f"http://127.0.0.1:{dashboard_port}"
        start = f"ray start --head --port={port} --ray-client-server-port={client_port} --num-cpus=2"
        start += f" --dashboard-agent-listen-port={agent_port}"
        start += f" --include-dashboard={dashboard} --dashboard-host=127.0.0.1 --dashboard-port={dashboard_port}"
        own = {"RAY_TMPDIR": str(folder), "HOME": str(folder)}
        environment = {**clean_environment(), **own, **environment}
        # Ray gives its agent 15 s to start, which a busy machine exceeds: hence a second try.
        script = f"{start} || {{ ray stop --force; {start}; }} && echo started && exec sleep 3600"
        command = [*namespace(), "sh", "-c", script]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + 600
        while not (text := (self.folder / "log").read_text()).endswith("started\n"):
            assert self._process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.1)

    @property
    def address(self) -> str:
        """HOST:PORT for RAY_ADDRESS."""
        return (self.folder / "ray/ray_current_cluster").read_text()

    def stop(self) -> None:
        """Ends all of its processes."""
        for process in [*processes_of(self.folder), self._process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
