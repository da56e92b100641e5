"""What every registered model promises, whatever it is: a new model costs no line here."""

import copy
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from conftest import TINY_MODELS, Prepared
from cuda_autocast import cuda_rules
from trainings import (
    BATCH,
    NUM_IMAGES,
    build,
    differing,
    every_model,
    make_trainer,
    progress_at_end,
    stage_points,
    through_disk,
    timeless,
)

import genmodels.trainer
from genmodels import export
from genmodels.data.loader import read_split
from genmodels.export import Sampler, turns
from genmodels.metrics.evaluate import evaluate
from genmodels.model import Batch, GenerativeModel, model_class
from genmodels.settings_file import ConfigError
from genmodels.trainer import Hooks, NonFiniteError, Trainer, to_float
from genmodels.validation import validated

LEARNING = {  # over the tiny settings: enough to learn a handful of images in 150 steps
    "autoencoder": {"width": 8, "lr": 4e-3},
    "vae": {"width": 8, "lr": 4e-3},
    "aae": {"width": 8, "hidden": 64, "lr": 4e-3, "adversarial_lr": 4e-3},
    "gan": {"generator_hidden": 128, "discriminator_hidden": 64, "num_hidden": 1, "lr": 5e-4},
    "dcgan": {"width": 16, "discriminator_width": 16, "lr": 1e-3},
    "infogan": {"width": 16, "hidden_dim": 64, "lr": 2e-3, "generator_lr": 2e-3, "information_weight": 0.05},
    "text2image": {"width": 16, "discriminator_width": 16, "lr": 2e-3},
    "cyclegan": {"width": 8, "discriminator_width": 8, "lr": 2e-3},
    "stargan": {"width": 8, "lr": 2e-3, "attributes": ["night"]},
    "puzzlegan": {"width": 16, "embedding_dim": 32, "lr": 2e-3, "l1_weight": [0.1, 0.01]},
    "progan": {"lr": 5e-3},
}

CONDITIONED = {"aae": {"use_labels": True, "prior": "mixture"}}  # settings under which more conditions are offered


class Uninterrupted:
    """A whole training with the state after every step, its log rows and its batches."""

    def __init__(self, name: str, data: Prepared, **train):
        self.states: dict[int, dict] = {}
        self.rows: list[dict] = []
        self.seen: list = []
        self.trainer = make_trainer(name, data, Hooks(log=self.rows.append, save=self._save), self.seen, **train)
        self.trainer.run()
        self.final = through_disk(self.trainer.state())

    def _save(self, num_images: int, state: dict) -> None:
        self.states[num_images] = through_disk(state)


@pytest.fixture(scope="module")
def whole(sprites_data) -> Callable[[str], Uninterrupted]:
    """By model name, an uninterrupted training; each runs once."""
    return cache(lambda name: Uninterrupted(name, sprites_data))


# --- phases ----------------------------------------------------------------------------------------------------------


@every_model
def test_a_phase_changes_exactly_the_parameters_of_its_networks(name, sprites_data):
    trainer = make_trainer(name, sprites_data)
    plain_loader = trainer.open_loader
    nets = {phase.name: set(phase.nets) for phase in trainer.model.phases}
    last = {key: value.clone() for key, value in trainer.model.named_parameters()}
    initial, updated = dict(last), {phase: set() for phase in nets}

    def changed() -> set[str]:
        now = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
        keys = {key for key in now if not torch.equal(now[key], last[key])}
        last.update(now)
        return keys

    def after_step(phase):
        def check():
            keys = changed()
            assert {key.split(".")[0] for key in keys} == nets[phase]
            updated[phase] |= keys

        return check

    def watched_loader(stage, num_images):  # opened at the start of each stage, when its optimisers are new
        for phase, optimizer in trainer.optimizers.items():
            watch(optimizer, lambda: assert_empty(changed()), after_step(phase))
        return plain_loader(stage, num_images)

    trainer.open_loader = watched_loader
    trainer.run()
    trained = set().union(*updated.values())
    assert trained == initial.keys(), f"never trained: {initial.keys() - trained}"


def watch(optimizer, before, after) -> None:
    """Has both called around every update."""
    step = optimizer.step
    optimizer.step = lambda: (before(), step(), after())


def assert_empty(keys: set[str]) -> None:
    assert not keys, f"changed outside an optimiser's step: {keys}"


@every_model
def test_declared_names_exist(name, sprites_data):
    model = build(name, sprites_data.spec)
    nets = {net for phase in model.phases for net in phase.nets}
    assert nets | set(model.ema_nets) | set(model.proof_nets) <= set(dict(model.named_children()))
    assert model.optimizers().keys() == {phase.name for phase in model.phases}
    assert not set(model.ema_nets) & set(model.proof_nets)
    for stage in model.stages(NUM_IMAGES, BATCH):
        assert set(stage.phases or ()) <= {phase.name for phase in model.phases}


class Unread:
    """Noise on the meta device."""

    def __init__(self, seed: int, step: int, phase: int, device: torch.device, rank: int, world_size: int):
        self.normal = self.uniform = lambda *shape: torch.empty(shape, device="meta")
        self.integers = lambda high, *shape: torch.empty(shape, device="meta", dtype=torch.int64)


@every_model
def test_no_step_waits_for_the_device(name, sprites_data, monkeypatch):
    """On a GPU, a value that the host reads stops it until the device has caught up; on meta there is none to read."""
    monkeypatch.setattr(genmodels.trainer, "Noise", Unread)
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: nullcontext())  # knows no meta
    trainer = make_trainer(name, sprites_data, model=build(name, sprites_data.spec).to("meta"), device="meta")
    for index, stage in enumerate(trainer.stages):
        trainer.stage_index, trainer.num_images = index, trainer._stage_start(index)
        with trainer.open_loader(stage, 0) as batches:
            batch = next(batches)
        for _ in range(max(phase.every for phase in trainer.model.phases)):
            trainer.train_step(trainer._to_device(batch))
        assert {key.split("/")[0] for key in trainer._interval.values} >= set(stage.phases or ())


@every_model
@pytest.mark.parametrize("rules", [nullcontext, cuda_rules], ids=["the processor's rules", "a GPU's rules"])
def test_bf16_trains_finite_weights_of_fp32(name, rules, sprites_data):
    trainer = make_trainer(name, sprites_data, precision="bf16", checkpoint_every=NUM_IMAGES)
    with rules():
        trainer.run()
    for key, value in [*trainer.model.state_dict().items(), *trainer.ema.state_dict().items()]:
        assert value.dtype != torch.bfloat16 and value.isfinite().all(), key


# --- resume ----------------------------------------------------------------------------------------------------------


@every_model
def test_resume_is_bit_exact_inside_and_at_the_end_of_every_stage(name, whole, sprites_data):
    reference = whole(name)
    ends, inside = stage_points(reference.trainer)
    for point in sorted({BATCH, *ends, *inside, NUM_IMAGES - BATCH}):
        rows: list[dict] = []
        resumed = make_trainer(name, sprites_data, Hooks(log=rows.append))
        resumed.load_state(reference.states[point])
        assert resumed.num_images == point
        resumed.run()
        assert differing(resumed.state(), reference.final) == []
        assert timeless(rows) == timeless([row for row in reference.rows if row["num_images"] > point])


@every_model
def test_another_seed_gives_another_training(name, whole, sprites_data):
    other = make_trainer(name, sprites_data, seed=1)  # of the same initial weights: sample order and noise differ
    other.run()
    assert differing(other.state(), whole(name).final)


# --- sampling --------------------------------------------------------------------------------------------------------


def conditions_of(trainer: Trainer, num: int = 64) -> Batch:
    """What the model's samples are conditioned on: held-out data of the stage's size."""
    batch, _ = read_split(trainer.shards, "test", trainer.progress().stage.image_size, num)
    floats = {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}
    return trainer.model.condition(floats)


def sampler_of(trainer: Trainer, live: bool = False) -> Sampler:
    model = trainer.model if live else trainer.ema
    return Sampler(model, trainer.progress(), {}, "cpu", conditions_of(trainer))


@every_model
def test_images_are_a_function_of_seed_and_number_alone(name, whole):
    sampler = sampler_of(whole(name).trainer)
    twenty = sampler.sample(20, seed=3)
    assert torch.equal(sampler.sample(20, seed=3), twenty)
    assert torch.equal(sampler.sample(5, seed=3), twenty[:5])
    assert torch.equal(sampler.sample(17, seed=3), twenty[:17])
    assert not torch.equal(sampler.sample(20, seed=4), twenty)
    distinct = 20 if twenty_latents_differ(sampler) else min(20, *map(len, sampler.conditions.values()))
    assert len({image.numpy().tobytes() for image in twenty}) == distinct


def twenty_latents_differ(sampler: Sampler) -> bool:
    """False for a model without latents, such as a translation: its images differ by their conditions alone."""
    return len({latent.numpy().tobytes() for latent in sampler.latents(20)}) == 20


@every_model
def test_samples_are_images_of_the_stage(name, whole, sprites_data):
    trainer = whole(name).trainer
    images = sampler_of(trainer).sample(3)
    assert images.shape == (3, sprites_data.spec.channels, 16, 16) and images.dtype == torch.float32
    assert images.isfinite().all() and images.abs().max() <= 1


@every_model
def test_sampling_leaves_the_training_as_it_was(name, whole, sprites_data):
    sampled = make_trainer(
        name, sprites_data, Hooks(snapshot=lambda *_: sampler_of(sampled).sample(2)), snapshot_every=16
    )
    sampled.run()
    assert differing(sampled.state(), whole(name).final) == []


@every_model
def test_export_samples_what_the_averaged_networks_do(name, whole, sprites_data, tmp_path):
    reference = whole(name)
    sampler = sampler_of(reference.trainer)
    sha256 = export.save(tmp_path / "export", sampler.model, sampler.progress, conditions=sampler.conditions)
    loaded = export.load(tmp_path / "export")
    assert torch.equal(loaded.sample(9, seed=2), sampler.sample(9, seed=2))
    live = sampler_of(reference.trainer, live=True)
    assert not torch.equal(loaded.sample(9, seed=2), live.sample(9, seed=2))  # so the averages are what was exported
    assert loaded.info["sha256"] == sha256
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@every_model
def test_export_samples_the_fade_it_was_saved_in(name, whole, sprites_data, tmp_path):
    for i, point in enumerate(stage_points(whole(name).trainer)[1]):
        trainer = make_trainer(name, sprites_data)
        trainer.load_state(whole(name).states[point])
        export.save(tmp_path / str(i), trainer.ema, trainer.progress(), conditions=conditions_of(trainer))
        images = export.load(tmp_path / str(i)).sample(4)
        assert images.shape[-1] == trainer.progress().stage.image_size
        assert torch.equal(images, sampler_of(trainer).sample(4))


# --- faults ----------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_and_touches_no_weight(name, value, sprites_data):
    for phase in build(name, sprites_data.spec).phases:
        trainer = make_trainer(name, sprites_data, log_every=BATCH, num_images=NUM_IMAGES)
        plain_step, plain_loader, before, after = trainer.model.training_step, trainer.open_loader, {}, {}
        terms, steps = [], []

        def updated(a=after, model=trainer.model):  # the last time right after the bad update
            a.update({key: parameter.detach().clone() for key, parameter in model.named_parameters()})

        def watched_loader(
            *arguments, trainer=trainer, phase=phase, plain_loader=plain_loader, updated=updated
        ):  # opened at the start of each stage, when its optimisers are new
            watch(trainer.optimizers[phase.name], lambda: None, updated)
            return plain_loader(*arguments)

        trainer.open_loader = watched_loader

        def poisoned(batch, phase_name, progress, *rest, phase=phase, plain=plain_step, b=before, t=terms, steps=steps):
            output = plain(batch, phase_name, progress, *rest)
            if phase_name == phase.name:
                steps.append(progress.step)
            if phase_name == phase.name and len(steps) == 3:  # the third time that the phase runs, in whichever stage
                model = plain.__self__
                b.update({k: v.clone() for k, v in model.state_dict().items() if k.split(".")[0] in phase.nets})
                t.extend(output.losses)
                output.losses[t[0]] = output.losses[t[0]] * value
            return output

        trainer.model.training_step = poisoned
        with pytest.raises(NonFiniteError) as error:
            trainer.run()
        for word in (name, repr(phase.name), repr(terms[0]), f"image {(steps[2] + 1) * BATCH}"):
            assert word in str(error.value)
        assert all(parameter.isfinite().all() for parameter in after.values())
        assert before and all(torch.equal(before[key], after[key]) for key in before.keys() & after.keys())


@every_model
def test_an_unknown_setting_is_refused_with_the_nearest_name(name):
    schema = model_class(name).Config
    key = next(iter(schema.model_fields))
    with pytest.raises(ConfigError) as error:
        validated(schema, {key[:-1] + "_": 1}, f"models.{name}")
    assert f"did you mean {key!r}?" in str(error.value) and "\n" not in str(error.value)


@every_model
def test_a_model_takes_every_condition_that_it_offers_and_no_other(name, sprites_data):
    model = build(name, sprites_data.spec, **CONDITIONED.get(name, {}))
    given = {"source": torch.zeros(2, 3, 16, 16), "caption": ["a red cat"] * 2}
    given["patches"] = torch.zeros(2 * max(1, sprites_data.spec.num_parts), 3, 16, 16)
    controls = model.controls()
    free = {key: given[key] for key, choices in controls.items() if not choices}
    chosen = {key: choices[-1] for key, choices in controls.items() if choices}
    together = [{**free, **chosen}] if "label" not in controls else [free, chosen]  # a class, or images
    for wanted in filter(None, together):
        batch = model.encode_condition(**wanted)
        images = model.generate(model.latent(2, torch.Generator()), turns(batch, 2), progress_at_end(model))
        assert images.shape[0] == 2
    with pytest.raises(ValueError, match="takes no"):
        model.encode_condition(nothing_of_the_kind=1)


@every_model
def test_every_setting_is_described_and_settings_survive_json(name):
    schema = model_class(name).Config
    assert all(field.description for field in schema.model_fields.values())
    settings = schema(**TINY_MODELS.get(name, {}))
    assert schema(**json.loads(settings.model_dump_json())) == settings


# --- learning --------------------------------------------------------------------------------------------------------


@every_model
def test_the_declared_score_improves_with_training(name, few_sprites):
    """On a handful of images, by the model's own metric at the final size, against the untrained networks."""
    model = build(name, few_sprites.spec, **LEARNING.get(name, {}))
    untrained = copy.deepcopy(model)
    images = 1200
    once = {"num_images": images, "log_every": images, "checkpoint_every": images, "snapshot_every": images}
    trainer = make_trainer(name, few_sprites, model=model, ema_half_life=50, **once)
    trainer.run()
    with trainer.open_loader(trainer.stages[-1], 0) as batches:
        parts = [trainer._to_device(next(batches)) for _ in range(8)]
    batch = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def score(model: GenerativeModel) -> float:
        cond = turns(model.condition(batch), 64)
        return evaluate(batch[model.output_key], Sampler(model, trainer.progress(), {}, "cpu").sample(64, cond=cond))[
            model.metric.name
        ]

    start, end = score(untrained), score(trainer.ema)
    assert model.metric.better(end, 0.85 * start if model.metric.direction == "min" else 1.18 * start), (start, end)
