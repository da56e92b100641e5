"""What the training loop tells its surroundings, when, and that a resumed training tells the same."""

import copy

import torch
from toy import Toy, make

from genmodels.trainer import NOTHING, SAVE, STOP, Hooks, Trainer


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
