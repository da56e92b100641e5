"""A machine that `ray up` reaches by ssh: sshd on 127.0.0.1, with keys, a home and processes of its own.

Its processes have a namespace of their own, because `ray stop`, which `ray up` and `ray down` run on it, ends every Ray
process that it sees.
"""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ray_head import clean_environment, namespace, processes_of
from swift_server import free_ports

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
USER = getpass.getuser()
FROM_HERE = ("PIP_", "SSL_", "REQUESTS_")  # what pip needs to reach its registry

SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
ForceCommand {folder}/session
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
MaxStartups 50
"""
SSH_CONFIG = """
Host *
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
"""
SESSION = """#!/bin/sh
{exports}
export HOME={home} RAY_TMPDIR={ray}
cd
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


def missing() -> str | None:
    """What has to be installed for this, in one line."""
    if SSHD and shutil.which("ssh") and shutil.which("rsync"):
        return None
    return "needs sshd and rsync: apt-get install -y openssh-server rsync"


class SshHead:
    """The head's sshd; `environment` is that of a user whose ssh, home and Ray files are apart from the real ones."""

    def __init__(self, folder: Path):
        self.folder, self.home, self.user_home = folder, folder / "head", folder / "user"
        self.port = free_ports(1)[0]
        self.ray_folders = [folder / "r", folder / "u"]  # short: a socket's path must fit into 107 bytes
        for path in (self.home, self.user_home, folder / "bin", *self.ray_folders):
            path.mkdir()
        self._configure()
        local = clean_environment()
        local["PATH"] = f"{folder}/bin:{local['PATH']}"  # our ssh
        self.environment = {**local, "HOME": str(self.user_home), "RAY_TMPDIR": str(self.ray_folders[1])}

    def _configure(self) -> None:
        values = {"folder": self.folder, "port": self.port, "home": self.home, "ray": self.ray_folders[0]}
        passed = {name: value for name, value in os.environ.items() if name.startswith(FROM_HERE)}
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in passed.items())
        (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(**values))
        (self.folder / "ssh_config").write_text(SSH_CONFIG.format(**values))
        (self.folder / "session").write_text(SESSION.format(exports=exports, **values))
        # ssh reads its configuration from the home in /etc/passwd, whatever $HOME says.
        wrapper = f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n'
        (self.folder / "bin/ssh").write_text(wrapper)
        for script in ("session", "bin/ssh"):
            (self.folder / script).chmod(0o755)
        (self.home / ".profile").write_text(f'export PATH="{sys.base_prefix}/bin:$PATH"\n')  # a node has Python 3.11
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True)

    def start(self) -> None:
        """Returns when it answers."""
        assert SSHD
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where a root's sshd drops its privileges
        command = [*namespace(), SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(100):
            assert self._process.poll() is None, (self.folder / "sshd.log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        raise AssertionError("sshd does not answer")

    def stop(self) -> None:
        """Ends sshd and, with its namespace, all that it started."""
        for process in [psutil.Process(self._process.pid), *self.processes()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """Those that a command of the user, here or on the head, has left."""
        return processes_of(*self.ray_folders)

    def run(self, *command: str, cwd: Path, timeout: float = 300, retry: bool = False) -> str:
        """Output of a command of the user, which must succeed (with `retry`, the second time) and be over in time."""
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{shlex.join(command)}: not over in {timeout:g} s:\n{output[-4000:]}") from None
        print(f"$ {shlex.join(command)}\n{output}")  # pytest shows it where the test fails
        if process.returncode and retry:
            return self.run(*command, cwd=cwd, timeout=timeout)
        assert process.returncode == 0, f"{shlex.join(command)}: exit code {process.returncode}"
        return output
