"""A Ray cluster of several nodes on this machine, in a process of its own: in one, Ray remembers an earlier token.

As a script it answers a line on standard output for each on standard input, and ends with it.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Nodes:
    """The cluster as a test sees it."""

    def __init__(self, process: subprocess.Popen, environment: dict[str, str], address: str):
        self._process, self.environment = process, {**environment, "RAY_ADDRESS": address}

    @property
    def address(self) -> str:
        return self.environment["RAY_ADDRESS"]

    def ask(self, *words: object) -> str:
        """What the cluster answers to `add NUM_CPUS`, `kill`, `drain` (of the latest node) or `count`."""
        assert self._process.stdin and self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()


@contextmanager
def ray_nodes(num_nodes: int) -> Iterator[Nodes]:
    """Nodes of one CPU each, with a token and a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **own}
        environment.pop("RAY_ADDRESS", None)
        with subprocess.Popen(
            [sys.executable, __file__, str(num_nodes)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                address = process.stdout.readline().strip()
                assert address, "the cluster did not start"
                yield Nodes(process, environment, address)
                process.stdin.close()
                process.wait(60)
            finally:
                process.send_signal(signal.SIGTERM)


def main(num_nodes: int) -> None:
    """Runs the cluster."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(num_nodes - 1)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["add", num_cpus]:
                nodes.append(cluster.add_node(num_cpus=int(num_cpus)))
            case ["kill"]:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            case ["drain"]:
                drain(cluster.address, nodes[-1].node_id)
        print(sum(node["Alive"] for node in cluster.global_state.node_table()), flush=True)
    cluster.shutdown()


def drain(address: str, node_id: str) -> None:
    """Announces, as an autoscaler does, that a spot machine is to be taken away in two minutes."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "spot", int((time.time() + 120) * 1000))
    assert accepted, why


if __name__ == "__main__":
    main(int(sys.argv[1]))
