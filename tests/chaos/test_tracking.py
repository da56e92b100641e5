"""Row 6: a tracking server that goes away; trainings go on, and what it missed is sent, each event once."""

import statistics
import subprocess
import sys
import time

import pytest
from mlflow_server import Server, assert_all_arrived_once, client

from chaos.harness import LONG, SHORT, Training


def server_goes_away(project, seconds, scale, folder, table, expected, monkeypatch) -> None:
    """Kills the server at a step; it comes back after `seconds`, or, for None, only when the training is over."""
    server = Server(folder)
    server.start()
    try:
        environment = {"MLFLOW_TRACKING_URI": server.uri}
        training = Training(project, f"tracking-{seconds}", scale, 0, ("note step=15",), environment=environment)
        with training.started() as process:
            training.wait_for_strike(process)
            server.kill()
            if seconds is not None:
                time.sleep(seconds)
                server.start()
            assert process.wait(800) == 0, training.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("GENMODELS_ROOT", str(project.root))
        if seconds is None:
            server.start()
            command = [sys.executable, "-m", "pipelines.sync", "--set", f"compute.storage_path={training.folder}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        equal = training.weights == expected.weights
        fault = "tracking server away " + (f"for {seconds} s" if seconds is not None else "until synced")
        table(6, fault, "step 15", repeated=0, equal=equal)
        assert equal and len(training.events("started")) == 1
        assert_all_arrived_once(training.run)
        assert client().get_run(training.run.info["mlflow_run_id"]).info.status == "FINISHED"
        assert _longest_gap(training) < 15
    finally:
        server.kill()


def _longest_gap(training: Training) -> float:
    """Seconds between two logs, the longest; one that waited for the server would be a minute or more."""
    times = [event["time"] for event in training.events("log")]
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return max(gaps) - statistics.median(gaps)


@pytest.mark.chaos
def test_a_server_that_is_away_for_half_a_minute_misses_nothing(chaos_project, tmp_path, table, reference, monkeypatch):
    server_goes_away(chaos_project, 30, LONG, tmp_path, table, reference(LONG, 0), monkeypatch)


@pytest.mark.chaos
def test_a_server_that_stays_away_gets_everything_by_one_command(
    chaos_project, tmp_path, table, reference, monkeypatch
):
    server_goes_away(chaos_project, None, SHORT, tmp_path, table, reference(SHORT, 0), monkeypatch)
