"""A sweep on a cluster that loses one of its two nodes."""

import json
import sys

import pytest

from chaos.harness import LONG, Training, client, running
from chaos.test_nodes import two_nodes
from pipelines.sweep import Sweep

NUM_TRIALS = 4
FAULTS = ("kill step=40 node=second target=raylet", "kill step=41 node=second")  # a worker outlives its raylet
SPACE = {"lr": {"loguniform": [0.0005, 0.005]}}


@pytest.mark.chaos
def test_a_lost_node_costs_a_sweep_no_trial(chaos_project):
    """The trial that trained there goes on on the node that is left; what had ended is not trained again."""
    training = Training(chaos_project, "sweep", LONG, 1, FAULTS)
    with two_nodes(training) as (training, _, _):
        command = [sys.executable, "-m", "pipelines.tune", *training.command[3:]]
        command += ["--num-trials", str(NUM_TRIALS), "--searcher", "random", "--scheduler", "none"]
        command += ["--set", f"sweep.progan={json.dumps(SPACE)}"]
        with running(command, training.variables, training.fault_folder / "stderr") as process:
            training.wait_for_strike(process)
            assert process.wait(800) == 0, training.stderr
    (file,) = training.folder.glob("sweeps/progan-*/run.json")
    trials = Sweep(file.parent).trials()
    assert [trial.status for trial in trials] == ["finished"] * NUM_TRIALS
    for trial in trials:  # an event arrives once, whatever was repeated
        logs = [event["num_images"] for event in trial.events() if event["type"] == "log"]
        assert logs == sorted(set(logs)) and logs[-1] >= LONG.num_images
    started = [sum(event["type"] == "started" for event in trial.events()) for trial in trials]
    assert sorted(started) == [1, 1, 1, 2]
    names = [trial.name for trial in trials]
    states = {run.info.run_name: run.info.status for run in client(chaos_project).search_runs(["1"])}
    assert [states[name] for name in names] == ["FINISHED"] * NUM_TRIALS
