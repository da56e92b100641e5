"""Row 3: a cluster that loses one of its two nodes."""

import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.harness import IN_WRITING, LONG, Training, wait

FAULTS = ("record", "kill step=120 node=second target=raylet")


@contextmanager
def two_nodes(training: Training) -> Iterator[tuple[Training, subprocess.Popen, Path]]:
    """The training on a cluster of its own, the cluster's process, and the folder of its logs."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # A folder of its own also hides the cluster from others on this machine.
        own = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        training = replace(training, environment=own)
        command = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
        with subprocess.Popen(
            command, env=training.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as cluster:
            try:
                address = cluster.stdout.readline().strip()
                assert address, "the cluster did not start"
                yield replace(training, environment={**own, "RAY_ADDRESS": address}), cluster, Path(folder) / "ray"
                cluster.stdin.close()
                cluster.wait(60)
            finally:
                cluster.send_signal(signal.SIGTERM)


def add_node(cluster: subprocess.Popen) -> None:
    cluster.stdin.write("add\n")
    cluster.stdin.flush()


@pytest.mark.chaos
def test_a_lost_node_is_replaced_and_the_weights_are_the_same(chaos_project, restart_row, reference):
    expected = reference(LONG, 2)
    with two_nodes(Training(chaos_project, "node", LONG, 2, FAULTS)) as (training, cluster, sessions):
        with training.started() as process:
            strike = training.wait_for_strike(process, number=1)
            add_node(cluster)
            assert process.wait(800) == 0, training.stderr
        repeated = training.repeated(training.resumption(strike))  # workers go on while their node is thought alive
        row = restart_row(
            3, "node lost, a new one comes", training, strike, expected, sessions=sessions, repeated=repeated
        )
    training.assert_whole()
    assert row.resumed <= training.patience
    assert 0 <= row.repeated <= LONG.checkpoint_every + IN_WRITING and row.equal


@pytest.mark.chaos
def test_two_workers_then_one_then_two_are_shown_the_same_samples(chaos_project, restart_row, reference):
    """The weights differ: sums over ranks differ in their order."""
    expected = reference(LONG, 2)
    with two_nodes(Training(chaos_project, "elastic", LONG, "[1,2]", FAULTS)) as (training, cluster, sessions):
        with training.started() as process:
            strike = training.wait_for_strike(process, number=1)
            wait(lambda: len(training.events("started")) > 1 or process.poll() is not None, 600, "restart")
            add_node(cluster)
            assert process.wait(800) == 0, training.stderr
        same = training.shown == expected.shown
        values = {"equal": same, "repeated": training.repeated(training.resumption(strike))}
        restart_row(3, "node lost, elastic 2-1-2", training, strike, expected, sessions=sessions, **values)
    assert [event["workers"] for event in training.events("started")] == [2, 1, 2]
    training.assert_whole()
    assert same
