"""The training loop, on a model small enough to work out by hand."""

import copy
import math
import threading
from contextlib import nullcontext
from itertools import repeat

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genmodels import distributed
from genmodels.config import TrainConfig
from genmodels.data.fields import DataSpec
from genmodels.model import GenerativeModel, OptimizerConfig, Phase, Stage, StepOutput, Strict
from genmodels.trainer import NOTHING, SAVE, STOP, Hooks, NonFiniteError, Trainer, check_stages, use_bf16

SPEC = DataSpec("toy", 1, 4, (4,), num_train=64, num_test=0)
BETAS = (0.9, 0.99)
LR = 0.1


class Empty(Strict):
    pass


class Toy(GenerativeModel):
    """Two networks of one number each, a and b, with known gradients."""

    Config = Empty
    name = "toy"
    phases = (Phase("one", ("a",)), Phase("two", ("b",)))
    ema_nets = ("a",)

    def __init__(self, sizes=(), gradient=None):
        super().__init__(Empty(), SPEC)
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.a.weight), nn.init.ones_(self.b.weight)
        self.sizes = sizes
        self.gradient = gradient or (lambda phase, progress, batch, noise: 1.0)
        self.calls: list[tuple[str, int]] = []
        self.seen: list[tuple[float, float]] = []

    def stages(self, num_images, batch_size):
        return self.sizes or super().stages(num_images, batch_size)

    def optimizers(self):
        return {phase.name: OptimizerConfig(lr=LR, betas=BETAS) for phase in self.phases}

    def training_step(self, batch, phase, progress, noise, scratch):
        self.calls.append((phase, progress.step))
        self.seen.append((self.a.weight.item(), self.b.weight.item()))
        weight = getattr(self, {"one": "a", "two": "b"}[phase]).weight.sum()
        return StepOutput({"loss": weight * self.gradient(phase, progress, batch, noise)}, {"step": weight * 0 + 1})

    def latent(self, num, generator):
        return torch.rand(num, 1, generator=generator)

    def generate(self, latent, cond, progress):
        return self.a(latent).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def no_data(stage, num_images):
    return nullcontext(repeat({"image": torch.zeros(stage.batch_size, 1, 4, 4)}))


def make(model=None, hooks=None, **train) -> Trainer:
    values = {"num_images": 64, "batch_size": 8, "log_every": 8, "ema_rampup": 0.0, "precision": "fp32", **train}
    return Trainer(model or Toy(), TrainConfig(**values), no_data, hooks)


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


# --- logs, snapshots, checkpoints ------------------------------------------------------------------------------------


def events(start: dict | None = None, **train) -> tuple[list, dict[int, dict]]:
    """All hook calls of a training, and its checkpoints."""
    happened, states = [], {}

    def save(num_images, state):
        happened.append(("save", num_images))
        states[num_images] = copy.deepcopy(state)

    hooks = Hooks(
        log=lambda row: happened.append(("log", {k: v for k, v in row.items() if k != "images_per_second"})),
        save=save,
        snapshot=lambda model, progress: happened.append(("snapshot", progress.num_images)),
        begun=lambda: happened.append(("begun", None)),
    )
    draws = lambda phase, progress, batch, noise: noise.normal(1).sum()  # noqa: E731
    trainer = make(Toy(gradient=draws), hooks, **train)
    if start:
        trainer.load_state(start)
    trainer.run()
    return happened, states


def test_logs_snapshots_and_checkpoints_are_identical_after_resume():
    train = {"num_images": 200, "log_every": 24, "checkpoint_every": 40, "snapshot_every": 64}
    whole, states = events(**train)
    assert list(states) == [40, 80, 120, 160, 200]
    for point, state in states.items():
        cut = whole.index(("save", point)) + 1
        assert events(state, **train)[0] == whole[cut:]


def test_events_come_at_multiples_of_their_intervals_in_images():
    happened, _ = events(num_images=50, batch_size=8, log_every=16, checkpoint_every=24, snapshot_every=40)
    assert [value for kind, value in happened if kind == "snapshot"] == [0, 40, 56]
    assert [value for kind, value in happened if kind == "save"] == [24, 48, 56]
    assert [value["num_images"] for kind, value in happened if kind == "log"] == [16, 24, 32, 40, 48, 56]
    assert [kind for kind, _ in happened].index("begun") == 1  # after the untrained networks' snapshot


def test_the_first_step_is_told_once_and_before_what_is_kept_of_it():
    happened, states = events(num_images=48, batch_size=8, log_every=8, checkpoint_every=8, snapshot_every=8)
    assert [kind for kind, _ in happened[:5]] == ["snapshot", "log", "begun", "snapshot", "save"]
    resumed, _ = events(states[8], num_images=48, batch_size=8, log_every=8, checkpoint_every=8, snapshot_every=8)
    assert "begun" not in [kind for kind, _ in resumed]


def test_a_log_row_is_the_mean_over_its_interval():
    rows = []
    model = Toy(gradient=lambda phase, progress, *_: float(progress.step))
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)  # weights stay at 1, so the loss is the step
    make(model, Hooks(log=rows.append), num_images=48, log_every=24, checkpoint_every=1000).run()
    assert [row["one/loss"] for row in rows] == [1.0, 4.0]
    assert [(row["step"], row["stage"], row["one/step"]) for row in rows] == [(3, "train", 1.0), (6, "train", 1.0)]


def test_every_snapshot_is_of_the_averaged_networks():
    seen = []
    hooks = Hooks(snapshot=lambda model, progress: seen.append(model.a.weight.item()))
    trainer = make(hooks=hooks, ema_half_life=50, snapshot_every=64)
    trainer.run()
    assert seen == [1.0, trainer.ema.a.weight.item()] and seen[1] != trainer.model.a.weight.item()


def test_a_training_that_is_done_is_not_repeated():
    _, states = events(num_images=16)
    assert events(states[16], num_images=16)[0] == []


def asked(wish: int, at: int, start: dict | None = None) -> tuple[Trainer, dict[int, dict]]:
    """A training that is asked for something after `at` images, and its checkpoints."""
    states = {}
    hooks = Hooks(save=lambda num_images, state: states.update({num_images: copy.deepcopy(state)}))
    model = Toy(gradient=lambda phase, progress, batch, noise: noise.normal(1).sum())
    trainer = make(model, hooks, num_images=96, checkpoint_every=1000, log_every=1000)
    if start:
        trainer.load_state(start)
    plain = model.training_step

    def step(batch, phase, progress, *rest):
        if (phase, progress.num_images) == ("one", at):
            trainer.ask(wish)
        return plain(batch, phase, progress, *rest)

    model.training_step = step
    trainer.run()
    return trainer, states


def test_a_training_that_is_asked_to_save_does_so_once_and_goes_on():
    trainer, states = asked(SAVE, 24)
    assert list(states) == [32, 96] and not trainer.stopped


def test_a_training_that_is_asked_to_stop_saves_first_and_resumes_bit_exactly():
    whole, _ = asked(NOTHING, 0)
    trainer, states = asked(STOP, 24)
    assert trainer.stopped and list(states) == [32] and trainer.num_images == 32
    again, _ = asked(NOTHING, 0, states[32])
    assert torch.equal(again.model.a.weight, whole.model.a.weight)


def test_a_training_that_is_asked_to_stop_at_its_end_is_finished():
    trainer, states = asked(STOP, 88)
    assert not trainer.stopped and list(states) == [96]


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


# --- several ranks ---------------------------------------------------------------------------------------------------


def train_data(phase, progress, batch, noise):
    """A gradient that depends on this rank's data and noise."""
    draws = noise.normal(len(batch["image"]))
    return (batch["image"].mean((1, 2, 3)) + 0.1 * draws).mean()


def numbered(rank: int, world_size: int):
    """Batches of images that hold their own numbers."""

    def open_loader(stage, num_images):
        share = stage.batch_size // world_size

        def batches():
            first = num_images
            while True:
                mine = torch.arange(first + rank * share, first + (rank + 1) * share, dtype=torch.float32)
                yield {"image": torch.sin(mine).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)}
                first += stage.batch_size

        return nullcontext(batches())

    return open_loader


def run_rank(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    model, rows = Toy(gradient=train_data), []
    if rank:
        nn.init.zeros_(model.a.weight)  # rank 0's weights must win
    config = TrainConfig(num_images=64, batch_size=8, log_every=16)
    trainer = Trainer(model, config, numbered(rank, world_size), Hooks(log=rows.append))
    trainer.run()
    rows = [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
    torch.save((trainer.state(), rows), f"{folder}/{rank}of{world_size}.pt")
    if world_size > 1:
        with torch.no_grad():
            model.a.weight.add_(rank)
        with numbered(rank, world_size)(trainer.stages[0], 64) as batches:
            trainer.train_step(next(batches))
        try:
            trainer._after_step()
        except AssertionError as error:
            torch.save(str(error), f"{folder}/caught{rank}.pt")
        dist.destroy_process_group()


def test_two_ranks_train_as_one_with_the_same_global_batch(tmp_path):
    run_rank(0, str(tmp_path), 1)
    mp.spawn(run_rank, args=(str(tmp_path), 2), nprocs=2)
    (one, one_rows), *two = (torch.load(tmp_path / f"{name}.pt") for name in ("0of1", "0of2", "1of2"))
    for state, rows in two:
        for key, value in one["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=1e-5, atol=1e-6)
        for row, one_row in zip(rows, one_rows, strict=True):
            assert row == {**one_row, **{k: pytest.approx(v, abs=1e-5) for k, v in one_row.items() if "/" in k}}
    for rank in range(2):  # and weights that differ are noticed at the next checkpoint
        assert "the ranks' weights differ" in torch.load(tmp_path / f"caught{rank}.pt")


def run_asked_rank(rank: int, folder: str) -> None:
    """Rank 1 is asked to stop, by a thread, while both train."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, saves = Toy(gradient=train_data), []
    config = TrainConfig(num_images=8_000_000, batch_size=8, log_every=8_000_000)
    hooks = Hooks(save=lambda num_images, state: saves.append(num_images))
    trainer = Trainer(model, config, numbered(rank, 2), hooks)
    if rank == 1:
        threading.Timer(0.2, trainer.ask, (STOP,)).start()
    trainer.run()
    shared = distributed.from_first({"from": rank})
    torch.save((trainer.num_images, saves[-1:], shared, trainer.stopped), f"{folder}/stopped{rank}.pt")
    dist.destroy_process_group()


def test_one_rank_that_is_asked_to_stop_stops_all_at_the_same_step(tmp_path):
    mp.spawn(run_asked_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"stopped{rank}.pt") for rank in range(2))
    assert first == second == (first[0], [first[0]], {"from": 0}, True)
    assert 0 < first[0] < 8_000_000
