"""Rows 1, 2, 4 and 5: killed workers, killed drivers, halted workers, drivers that are asked to end."""

import time

import pytest

from chaos.harness import IN_WRITING, LONG, SHORT, Training, client, random_places, wait

MAX_SECONDS = 60  # from a fault to the moment when it is known


def kill(rank: int, step: int) -> str:
    return f"kill rank={rank} step={step}"


def with_workers(num: int) -> str:
    return f"with {num} workers" if num else "without Ray"


def assert_resumed(row, training: Training) -> None:
    assert row.resumed <= training.patience
    assert row.repeated <= training.scale.checkpoint_every + IN_WRITING
    assert row.equal


def workers_are_killed(project, name, places, scale, restart_row, expected) -> None:
    """Kills workers in the same training and judges each restart."""
    training = Training(project, name, scale, 2, tuple(kill(*place) for place in places))
    training.settings["compute.max_failures"] = len(places)
    training.finish(timeout=600 + 90 * len(places))
    strikes = training.strikes
    assert [(strike.rank, strike.step) for strike in strikes] == places
    rows = [restart_row(1, "worker killed", training, strike, expected) for strike in strikes]
    assert len(training.events("started")) == len(places) + 1
    training.assert_whole()
    for row in rows:
        assert_resumed(row, training)


@pytest.mark.cluster
def test_a_killed_worker_is_replaced_and_ends_with_the_same_weights(chaos_project, seed, restart_row, reference):
    places = random_places(seed, 1, 2, SHORT.num_steps)
    workers_are_killed(chaos_project, "worker", places, SHORT, restart_row, reference(SHORT, 2))


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_twenty_killed_workers_are_replaced_and_end_with_the_same_weights(chaos_project, seed, restart_row, reference):
    places = random_places(seed, 20, 2, LONG.num_steps)
    workers_are_killed(chaos_project, "workers", places, LONG, restart_row, reference(LONG, 2))


def driver_is_killed(project, scale, num_workers, seed, restart_row, expected) -> None:
    """Kills the driver at a step and gives its command again."""
    ((rank, step),) = random_places(seed, 1, max(num_workers, 1), scale.num_steps)
    fault = f"kill rank={rank} step={step} target=driver"
    training = Training(project, f"driver-{num_workers}", scale, num_workers, (fault,))
    with training.started() as process:
        strike = training.wait_for_strike(process)
        orphans = strike.left_behind()
        mlflow_run = training.run.info["mlflow_run_id"]
    assert not orphans, f"left behind: {orphans}"
    assert not training.events("finished")
    training.finish()
    start = training.resumption(strike)
    row = restart_row(
        2,
        f"driver killed, {with_workers(num_workers)}",
        training,
        strike,
        expected,
        detected=None,
        resumed=start["time"] - training.given[-1],
    )
    assert mlflow_run in (None, training.run.info["mlflow_run_id"])  # none: killed before MLflow was asked for one
    assert len(client(project).search_runs(["1"], f"tags.folder = '{training.run.folder}'")) == 1
    assert len(training.events("started")) == 2
    training.assert_whole()
    assert_resumed(row, training)


def test_a_driver_killed_without_ray_goes_on_to_the_same_weights(chaos_project, seed, restart_row, reference):
    driver_is_killed(chaos_project, SHORT, 0, seed, restart_row, reference(SHORT, 0))


@pytest.mark.chaos
def test_a_driver_killed_with_ray_goes_on_to_the_same_weights(chaos_project, seed, restart_row, reference):
    driver_is_killed(chaos_project, LONG, 2, seed, restart_row, reference(LONG, 2))


@pytest.mark.chaos
def test_a_stopped_worker_is_found_and_replaced(chaos_project, seed, restart_row, reference):
    ((rank, step),) = random_places(seed, 1, 2, LONG.num_steps)
    training = Training(chaos_project, "stopped", LONG, 2, (f"stop rank={rank} step={step}",))
    with training.started() as process:
        strike = training.wait_for_strike(process)
        wait(lambda: len(training.events("started")) == 2 or process.poll() is not None, 600, "restart")
        stopped = [left for left in strike.left_behind() if left.pid == strike.pid]
        assert process.wait(800) == 0, training.stderr
    row = restart_row(4, "worker stopped", training, strike, reference(LONG, 2))
    assert not stopped
    assert row.detected <= MAX_SECONDS
    assert_resumed(row, training)


def driver_is_asked_to_end(project, kind, scale, num_workers, seed, table, expected) -> None:
    """Sends the driver a signal, as a machine does that is taken away in 30 s, and gives its command again."""
    ((rank, step),) = random_places(seed, 1, max(num_workers, 1), scale.num_steps - 4)  # the vote to stop takes some
    fault = f"{kind} rank={rank} step={step} target=driver"
    training = Training(project, f"{kind}-{num_workers}", scale, num_workers, (fault,))
    training.settings["models.progan.train.checkpoint_every"] = 10**6  # only the one that is asked for
    with training.started() as process:
        strike = training.wait_for_strike(process)
        code = process.wait(100)
        seconds = time.time() - strike.time
        orphans = strike.left_behind()
    told, info = training.stderr, training.run.info
    tracked = client(project).get_run(info["mlflow_run_id"]).info.status
    training.finish()
    start = training.resumption(strike)
    row = table(
        5,
        f"SIG{kind.upper()}, {with_workers(num_workers)}",
        f"step {step}",
        detected=seconds,
        resumed=start["time"] - training.given[-1],
        repeated=max(0, strike.num_images - start["num_images"]),
        equal=training.weights == expected.weights,
    )
    assert (code, info["status"], tracked) == (130, "stopped", "KILLED")
    assert "stopping after a checkpoint" in told and "the same command goes on" in told
    assert not orphans, f"left behind: {orphans}"
    assert seconds <= 30
    assert row.repeated == 0 and row.equal
    training.assert_whole()


@pytest.mark.parametrize("kind", ["term", pytest.param("int", marks=pytest.mark.chaos)])
def test_a_driver_asked_to_end_leaves_a_checkpoint_without_ray(kind, chaos_project, seed, table, reference):
    driver_is_asked_to_end(chaos_project, kind, SHORT, 0, seed, table, reference(SHORT, 0))


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["term", "int"])
def test_a_driver_asked_to_end_leaves_a_checkpoint_with_ray(kind, chaos_project, seed, table, reference):
    driver_is_asked_to_end(chaos_project, kind, LONG, 2, seed, table, reference(LONG, 2))
