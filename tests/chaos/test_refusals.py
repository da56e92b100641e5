"""Rows 13, 19 and 22: diverging trainings, wrong parameters, second drivers."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from chaos.harness import SHORT, Training, client


@pytest.mark.parametrize("phase", ["critic", pytest.param("generator", marks=pytest.mark.chaos)])
def test_a_nan_stops_the_training_by_name_and_it_is_never_champion(phase, chaos_project, table, reference):
    expected = reference(SHORT, 0).weights
    training = Training(chaos_project, f"nan-{phase}", SHORT, 0, (f"nan step=37 phase={phase}",))
    line = training.refused()
    (strike,) = training.strikes
    info, mlflow = training.run.info, client(chaos_project)
    tracked = mlflow.get_run(info["mlflow_run_id"]).info.status
    registered = [v for v in mlflow.search_model_versions("name = 'progan'") if v.run_id == info["mlflow_run_id"]]
    training.finish()  # a fault that does not come again
    start = training.resumption(strike)
    row = table(
        13,
        f"NaN in phase {phase}",
        f"step {strike.step}",
        repeated=strike.num_images - start["num_images"],
        equal=training.weights == expected,
    )
    assert f"progan: phase '{phase}', term " in line and "became nan" in line
    assert (info["status"], tracked, registered) == ("failed", "FAILED", [])
    assert 0 <= row.repeated <= SHORT.checkpoint_every and row.equal


@pytest.mark.parametrize(
    "wrong, words",
    {
        "models.progan.latent_dmi=3": ["latent_dmi", "did you mean 'latent_dim'?"],
        "models.progan.latent_dim=many": ["models.progan.latent_dim", "'many'"],
        "models.progan.train.batch_size=0": ["batch_size", "greater than or equal to 1", "got 0"],
        "compute.num_workers=3": ["batch_size 16", "does not divide by 3 workers"],
        "models.progan.train.image_size=64": ["image_size 64", "sizes 4, 8, 16"],
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_parameter_is_told_soon_after_torch_is_there(wrong, words, chaos_project, table):
    """All in all 2.5 times the processor seconds of `import torch` (1.4 to 3.3), which tell how fast it is."""
    key, value = wrong.split("=")
    training = Training(chaos_project, "wrong", SHORT, 0, settings={key: value})
    torch = processor_seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    lines: list[str] = []
    seconds = processor_seconds(lambda: lines.append(training.refused()))
    table(19, wrong, "params", detected=seconds)
    assert all(word in lines[0] for word in words), lines
    assert seconds < 2.5 * torch
    assert not training.folder.exists()


def processor_seconds(action: Callable[[], object]) -> float:
    """What the children of this process took meanwhile, at best: others on the machine can double it."""
    taken = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        action()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_a_second_driver_is_refused_and_told_who_holds_the_run(chaos_project, table, reference):
    training = Training(chaos_project, "second", SHORT, 0, ("stop step=40",))
    with training.started() as first:
        strike = training.wait_for_strike(first)
        line = Training(chaos_project, "second", SHORT, 0).refused()
        os.kill(strike.pid, signal.SIGCONT)
        assert first.wait(300) == 0, training.stderr
    equal = training.weights == reference(SHORT, 0).weights
    table(22, "second driver of a run", "step 40", equal=equal)
    assert line.startswith(f"error: run {training.run.name} is held by process {strike.pid} on ")
    assert equal and len(training.events("started")) == 1
