"""The steps of the training loop, on a model small enough to work out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import BETAS, LR, Toy, make, no_data

from genmodels.config import TrainConfig
from genmodels.model import Phase, Stage, StepOutput
from genmodels.trainer import Hooks, NonFiniteError, Trainer, check_stages, use_bf16


def adam(gradients: list[float], start: float = 1.0) -> float:
    """Kingma & Ba 2015, algorithm 1, in plain numbers."""
    (b1, b2), m, v, value = BETAS, 0.0, 0.0, start
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        value -= LR * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8)
    return value


# --- one step --------------------------------------------------------------------------------------------------------


def test_each_phase_is_one_adam_update_by_its_own_gradient():
    gradients = {"one": [1.0, -2.0, 0.5], "two": [3.0, 0.1, -1.0]}
    trainer = make(Toy(gradient=lambda phase, progress, *_: gradients[phase][progress.step]), num_images=24)
    trainer.run()
    assert trainer.model.a.weight.item() == pytest.approx(adam(gradients["one"]), rel=1e-6)
    assert trainer.model.b.weight.item() == pytest.approx(adam(gradients["two"]), rel=1e-6)


def test_a_phase_runs_every_so_many_steps_in_the_order_of_phases():
    model = Toy()
    model.phases = (Phase("one", ("a",)), Phase("two", ("b",), every=3))
    make(model, num_images=40).run()
    assert model.calls == [("one", 0), ("two", 0), ("one", 1), ("one", 2), ("one", 3), ("two", 3), ("one", 4)]


@pytest.mark.parametrize("simultaneous", [False, True])
def test_simultaneous_phases_see_the_weights_before_either_step(simultaneous):
    model = Toy()
    model.simultaneous = simultaneous
    make(model, num_images=8).run()
    (a_first, _), (a_second, _) = model.seen
    assert (a_second == a_first) is simultaneous
    assert model.a.weight.item() != a_first


def test_networks_outside_the_phase_are_frozen():
    trained = []
    model = Toy()
    plain = model.training_step

    def watch(batch, phase, *rest):
        trained.append((phase, [name for name, p in model.named_parameters() if p.requires_grad]))
        return plain(batch, phase, *rest)

    model.training_step = watch
    make(model, num_images=8).run()
    assert trained == [("one", ["a.weight"]), ("two", ["b.weight"])]


def test_lr_scale_changes_the_step_and_does_not_pile_up():
    model = Toy()
    model.lr_scale = lambda phase, progress: 0.5
    make(model, num_images=16).run()
    assert model.a.weight.item() == pytest.approx(1 - 2 * 0.5 * LR, rel=1e-5)  # Adam's step under a constant gradient


# --- non-finite updates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_update_is_skipped_wholly(bad):
    """The same as if the step had not been: weights, moments and step count."""
    good = {0: 1.0, 1: -2.0, 3: 0.5}
    model = Toy(gradient=lambda phase, progress, *_: good.get(progress.step, bad))
    trainer = make(model, num_images=32, log_every=1000, checkpoint_every=1000, snapshot_every=1000)
    with pytest.raises(NonFiniteError, match="toy: phase 'one', term 'loss' became"):
        trainer.run()
    assert model.a.weight.item() == pytest.approx(adam(list(good.values())), rel=1e-6)
    (state,) = trainer.optimizers["one"].moments.values()
    assert state["step"].item() == 3 and state["exp_avg"].isfinite() and state["exp_avg_sq"].isfinite()


def test_a_non_finite_training_writes_no_checkpoint_and_no_snapshot():
    made = []
    hooks = Hooks(save=lambda n, state: made.append(("save", n)), snapshot=lambda m, p: made.append(("snap", 0)))
    model = Toy(gradient=lambda phase, progress, *_: math.nan if progress.step == 1 else 1.0)
    trainer = make(model, hooks, log_every=1000, checkpoint_every=16, snapshot_every=16)
    with pytest.raises(NonFiniteError):
        trainer.run()
    assert made == [("snap", 0)]  # of the untrained networks
    assert trainer.num_images == 16


def test_a_non_finite_gradient_of_a_finite_loss_stops_too():
    model = Toy()
    plain = model.training_step

    def kinked(batch, phase, progress, noise, scratch):
        output = plain(batch, phase, progress, noise, scratch)
        zero = (getattr(model, {"one": "a", "two": "b"}[phase]).weight * 0).sum()
        return StepOutput({"loss": output.losses["loss"] + zero.sqrt()})  # slope of the root at 0

    model.training_step = kinked
    with pytest.raises(NonFiniteError, match="'gradient_norm'"):
        make(model).run()
    assert model.a.weight.item() == 1


# --- averaged weights ------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(half_life=st.sampled_from([8.0, 20.0, 100.0]), batch_size=st.sampled_from([1, 2, 4, 8]))
def test_the_average_closes_half_the_gap_in_a_half_life_of_images(half_life, batch_size):
    trainer = make(ema_half_life=half_life, batch_size=batch_size, num_images=40, log_every=40)
    with torch.no_grad():
        trainer.model.a.weight.fill_(3.0)
    trainer.optimizers["one"].step = lambda: None  # the live weights stay at 3, the average starts at 1
    trainer.run()
    assert trainer.ema.a.weight.item() == pytest.approx(3 - 2 * 0.5 ** (40 / half_life), rel=1e-5)


def test_no_half_life_means_no_averaging():
    trainer = make(ema_half_life=0)
    trainer.run()
    assert torch.equal(trainer.ema.a.weight, trainer.model.a.weight)


def test_the_half_life_is_at_most_a_share_of_the_images_shown():
    trainer = make(ema_half_life=1e9, ema_rampup=0.25, num_images=16)
    lives, plain = [], trainer._after_step
    trainer._after_step = lambda: (lives.append(trainer.model.a.weight.item()), plain())
    trainer.run()
    expected = 1.0
    for shown, live in zip((8, 16), lives, strict=True):
        expected += (live - expected) * (1 - 0.5 ** (8 / (0.25 * shown)))
    assert trainer.ema.a.weight.item() == pytest.approx(expected, rel=1e-6)


def test_buffers_of_the_average_are_the_live_ones():
    model = Toy()
    model.a.register_buffer("count", torch.zeros(1))
    plain = model.training_step
    model.training_step = lambda *args: (model.a.count.add_(1), plain(*args))[1]
    trainer = make(model)
    trainer.run()
    assert trainer.ema.a.count == model.a.count == 16
    assert trainer.ema.a.count is not model.a.count


# --- stages ----------------------------------------------------------------------------------------------------------


def visited(batch_size: int, first: int = 30, second: int = 50) -> list[tuple[str, float]]:
    """(stage, fraction) at the start of every step."""
    sizes = (Stage("first", first, 4, batch_size), Stage("second", second, 4, batch_size))
    seen = []
    model = Toy(sizes, gradient=lambda phase, progress, *_: seen.append((progress.stage.name, progress.fraction)) or 1)
    model.phases = model.phases[:1]
    make(model).run()
    return seen


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 40), first=st.integers(1, 60), second=st.integers(1, 60))
def test_stages_follow_images_shown_whatever_the_batch(batch_size, first, second):
    steps = visited(batch_size, first, second)
    expected, shown = [], 0
    while shown < first + second:
        start, length = (0, first) if shown < first else (first, second)
        expected.append(("first" if shown < first else "second", (shown - start) / length))
        shown += batch_size
    assert [name for name, _ in steps] == [name for name, _ in expected]
    assert [fraction for _, fraction in steps] == pytest.approx([fraction for _, fraction in expected])


def test_a_stage_opens_its_own_loader_where_the_last_one_ended():
    opened = []

    def open_loader(stage, num_images):
        opened.append((stage.name, stage.batch_size, num_images))
        return no_data(stage, num_images)

    sizes = (Stage("first", 10, 4, 4), Stage("second", 10, 4, 2))
    trainer = Trainer(Toy(sizes), TrainConfig(log_every=1), open_loader)
    trainer.run()
    assert opened == [("first", 4, 0), ("second", 2, 12)]
    assert trainer.num_images == 20 and trainer.step == 3 + 4


def test_adam_starts_afresh_at_a_stage_change():
    sizes = (Stage("first", 24, 4, 8), Stage("second", 16, 4, 8))
    gradients = [1.0, 1.0, -3.0, 0.5, 2.0]
    trainer = make(Toy(sizes, gradient=lambda phase, progress, *_: gradients[progress.step]))
    trainer.run()
    fresh = adam(gradients[3:], adam(gradients[:3]))
    assert trainer.model.a.weight.item() == pytest.approx(fresh, rel=1e-6)
    assert fresh != pytest.approx(adam(gradients), rel=1e-3)


def test_a_stage_runs_the_phases_that_it_names():
    sizes = (Stage("first", 16, 4, 8, phases=("two",)), Stage("second", 8, 4, 8))
    model = Toy(sizes)
    make(model).run()
    assert model.calls == [("two", 0), ("two", 1), ("one", 2), ("two", 2)]


def test_a_batch_that_does_not_divide_by_the_workers_is_refused():
    stages = (Stage("first", 10, 4, 8), Stage("second", 10, 8, 6))
    check_stages(stages, 2)
    check_stages(stages, 0)
    with pytest.raises(ValueError, match="batch_size 6 of stage 'second' does not divide by 4 workers"):
        check_stages(stages, 4)
    with pytest.raises(ValueError, match="batch_size 6 of stage 'second' is too small: this model needs 2 images a w"):
        check_stages(stages[1:], 6, least_share=2)


# --- precision -------------------------------------------------------------------------------------------------------


def test_bf16_trains_finite_with_fp32_weights():
    model, dtypes = Toy(), set()
    plain = model.training_step

    def step(batch, *rest):
        dtypes.add(model.a(torch.ones(2, 1)).dtype)
        return plain(batch, *rest)

    model.training_step = step
    trainer = make(model, precision="bf16")
    trainer.run()
    assert dtypes == {torch.bfloat16}
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert [use_bf16(precision, cpu) for precision in ("auto", "fp32", "bf16")] == [False, False, True]
