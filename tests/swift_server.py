"""A real S3 server on 127.0.0.1 for tests: OpenStack Swift's s3api, with proxy and storage in one process.

`python tests/swift_server.py FOLDER PORT` serves what FOLDER holds: a server that was killed and is started again
there has lost nothing.
"""

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

BACKENDS = ("account", "container", "object")

SWIFT = """
[swift-hash]
swift_hash_path_suffix = test
[storage-policy:0]
name = default
default = yes
"""
BACKEND = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
fallocate_reserve = 0
user = {user}
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[DEFAULT]
swift_dir = {folder}
user = {user}
[pipeline:main]
pipeline = catch_errors s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


class SwiftServer:
    """The server's process; every method acts on that alone."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_ports(1)[0]
        self.environment = {  # keys of this server alone
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, __file__, str(self.folder), str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            with suppress(URLError, ConnectionError):
                try:
                    urlopen(self.environment["AWS_ENDPOINT_URL"], timeout=60).close()
                except HTTPError as answer:
                    answer.close()
                    return
            time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """It accepts connections and never answers."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


def free_ports(num: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def configure(folder: Path) -> None:
    """Configuration, and rings that name one disk and the storage servers' ports."""
    from swift.common.ring import RingBuilder

    values = {"folder": folder, "user": pwd.getpwuid(os.geteuid()).pw_name}
    (folder / "disks/d1").mkdir(parents=True)
    (folder / "proxy.conf").write_text(PROXY.format(**values))
    for kind, port in zip(BACKENDS, free_ports(len(BACKENDS)), strict=True):
        (folder / f"{kind}.conf").write_text(BACKEND.format(**values, kind=kind))
        ring = RingBuilder(2, 1, 0)  # 4 partitions, one copy
        ring.add_dev({"region": 1, "zone": 1, "weight": 1, "device": "d1", "ip": "127.0.0.1", "port": port})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
    (folder / "swift.conf").write_text(SWIFT)


def serve(folder: Path, port: int) -> None:
    """Serves until it is killed. Swift's own `run_server` would take a process for each of the four."""
    import warnings

    import eventlet
    from eventlet import wsgi
    from swift.common import utils
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.ring import Ring
    from swift.common.wsgi import loadapp

    utils.monkey_patch()
    utils.set_swift_dir(str(folder))
    warnings.filterwarnings("ignore", message="capitalize_response_headers is disabled")  # clients want ETag, not Etag
    options = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False, "log_output": False}
    ports = {kind: Ring(str(folder), ring_name=kind).devs[0]["port"] for kind in BACKENDS} | {"proxy": port}
    for kind, number in ports.items():
        app = loadapp(str(folder / f"{kind}.conf"), global_conf={"log_name": kind})
        listener = eventlet.listen(("127.0.0.1", number), backlog=128)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        running = eventlet.spawn(wsgi.server, listener, app, **options)
    running.wait()


if __name__ == "__main__":
    top = Path(sys.argv[1])
    if not (top / "swift.conf").exists():
        configure(top)
    serve(top, int(sys.argv[2]))
