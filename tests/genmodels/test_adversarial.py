"""The switches of every adversarial model: loss, penalty, the discriminator's normalisation, augmentation."""

from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Prepared
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from trainings import BATCH, build, differing, make_trainer, progress_at_end, through_disk

from genmodels import export
from genmodels.adversarial import AdversarialConfig
from genmodels.data.fields import DataSpec
from genmodels.data.loader import read_split
from genmodels.losses import fake_loss
from genmodels.model import GenerativeModel, Noise, StepOutput, model_class, model_names
from genmodels.settings_file import ConfigError
from genmodels.trainer import Hooks, Trainer, to_float
from genmodels.validation import validated

MIDDLE = 5 * BATCH  # images, of twice as many
CPU = torch.device("cpu")
SWITCHES = ("loss", "penalty", "discriminator_norm", "augment")
MODELS = [name for name in model_names() if issubclass(model_class(name).Config, AdversarialConfig)]
COMBINATIONS = {
    "gan": {"penalty": "dragan", "augment": True},
    "dcgan": {"loss": "hinge", "discriminator_norm": "spectral", "augment": True},
    "infogan": {"loss": "wasserstein", "penalty": "gp", "discriminator_norm": "spectral"},
    "stargan": {"loss": "hinge", "penalty": "none", "discriminator_norm": "spectral"},
}

every_model = pytest.mark.parametrize("name", MODELS)
every_combination = pytest.mark.parametrize("name", COMBINATIONS)


def choices(name: str, switch: str) -> list:
    """What a model takes for a switch; nothing for one that it does not have."""
    field = model_class(name).Config.model_fields.get(switch)
    if field is None:
        return []
    return [False, True] if field.annotation is bool else list(get_args(field.annotation))


def settings(switch: str, value) -> dict:
    """The switch thrown; with a norm that every penalty takes."""
    return {switch: value, **({"discriminator_norm": "none"} if switch == "penalty" else {})}


def with_norm(norm: str) -> list[str]:
    return [name for name in MODELS if norm in choices(name, "discriminator_norm")]


def critics(model: GenerativeModel) -> list[nn.Module]:
    return [net for name, net in model.named_children() if name.startswith(("discriminator", "critic"))]


def steps(model: GenerativeModel, data: Prepared) -> dict[str, StepOutput]:
    """One step of every phase on real data, at the end of training."""
    batch, _ = read_split(data.folder, "train", 16, 4)  # so many has either domain
    batch = {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}
    progress, scratch = progress_at_end(model), {}
    return {
        phase.name: model.training_step(batch, phase.name, progress, Noise(0, 0, i, CPU), scratch)
        for i, phase in enumerate(model.phases)
    }


# --- each switch -----------------------------------------------------------------------------------------------------


def test_all_adversarial_models_have_the_switches():
    assert set(MODELS) == set(model_names()) - {"autoencoder", "vae", "aae"}
    for name in MODELS:
        lacking = [switch for switch in SWITCHES if len(choices(name, switch)) < 2]
        assert lacking == (["discriminator_norm"] if name == "progan" else [])


@pytest.mark.parametrize(
    ("name", "switch", "value"), [(n, s, v) for n in MODELS for s in SWITCHES for v in choices(n, s)]
)
def test_every_choice_of_every_switch_trains(name, switch, value, few_sprites):
    changes = settings(switch, value) if name != "progan" else {switch: value}
    model = build(name, few_sprites.spec, **changes)
    for phase, (losses, stats) in steps(model, few_sprites).items():
        assert all(term.isfinite() for term in [*losses.values(), *stats.values()])
        model.zero_grad()
        sum(losses.values()).backward()
        nets = next(each.nets for each in model.phases if each.name == phase)
        gradients = [p.grad for net in nets for p in getattr(model, net).parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)
        if phase in ("discriminator", "discriminators", "critic"):
            assert any(key.startswith("penalty") for key in losses) == (model.config.penalty != "none")


@pytest.mark.parametrize("penalty", ["gp", "dragan"])
@pytest.mark.parametrize("name", with_norm("batch"))
def test_a_penalty_on_single_images_is_refused_under_batch_norm(name, penalty):
    with pytest.raises(ConfigError, match=rf"models.{name}: .*penalty '{penalty}' needs discriminator_norm 'none'"):
        validated(model_class(name).Config, {"penalty": penalty}, f"models.{name}")


@every_model
def test_a_norm_that_the_discriminator_cannot_have_is_refused(name):
    others = {"batch", "instance", "spectral", "none"} - set(choices(name, "discriminator_norm"))
    for norm in others:
        with pytest.raises(ConfigError, match="discriminator_norm"):
            validated(model_class(name).Config, {"discriminator_norm": norm}, f"models.{name}")


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for norm in ("spectral", "none") for name in with_norm(norm)])
def test_without_batch_or_instance_norm_the_discriminator_has_none_and_biases_instead(name, norm, few_sprites):
    for critic in critics(build(name, few_sprites.spec, discriminator_norm=norm, penalty="none")):
        assert not [m for m in critic.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d)]
        without = [n for n, m in critic.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is None]
        assert without == (["score", "attributes"] if name == "stargan" else [])  # as in the paper


@pytest.mark.parametrize("name", with_norm("spectral"))
def test_spectral_norm_bounds_every_layer_that_judges(name, few_sprites):
    free = {"infogan": "q.", "stargan": "attributes"}.get(name, "-")
    for critic in critics(build(name, few_sprites.spec, discriminator_norm="spectral", penalty="none")):
        layers = {n: m for n, m in critic.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        unbound = [n for n, layer in layers.items() if not is_parametrized(layer)]
        assert layers and unbound == [n for n in layers if n.startswith(free)]
        for layer in filter(is_parametrized, layers.values()):
            for _ in range(100):
                weight = layer.weight  # each pass is one power iteration
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@every_model
def test_augmentation_is_on_all_that_the_discriminator_sees(name, few_sprites):
    def seen(**changes) -> list[Tensor]:
        model, inputs = build(name, few_sprites.spec, **changes), []
        for critic in critics(model):
            first = next(m for m in critic.modules() if not list(m.children()) and list(m.parameters()))
            first = critic.from_rgb["16"][0] if name == "progan" else first
            first.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
        steps(model, few_sprites)
        return inputs

    plain, again, augmented = seen(), seen(), seen(augment=True)
    assert len(plain) == len(augmented) > 1
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    for before, after in zip(plain, augmented, strict=True):
        assert (before != after).flatten(1).any(1).all()


def test_points_of_the_plane_cannot_be_augmented():
    with pytest.raises(ValueError, match="augment of gan.*'ring' has points, no images; choices: false") as error:
        build("gan", DataSpec("ring", 2, 1, (1,), num_train=8, num_test=8), augment=True)
    assert "\n" not in str(error.value)


def test_only_the_gradient_penalty_has_a_target():
    with pytest.raises(ConfigError, match="penalty_target 750.0 is of penalty 'gp', not 'r1'"):
        validated(model_class("progan").Config, {"penalty": "r1", "penalty_target": 750.0}, "models.progan")


@pytest.mark.parametrize(("penalty", "expected"), [("gp", 4.0), ("dragan", 4.0), ("r1", 4.5)])
def test_a_penalty_is_weighted(penalty, expected):
    real, fake = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    config = AdversarialConfig(penalty=penalty, penalty_weight=0.5)
    slope_of_three = nn.functional.normalize(torch.ones(192), dim=0) * 3
    losses = config.penalised(lambda x: x.flatten(1) @ slope_of_three, real, fake, Noise(0, 0, 0, CPU))
    assert losses["penalty"].item() == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("loss", choices("puzzlegan", "loss"))
def test_composites_of_strangers_follow_the_loss(loss, few_sprites):
    model = build("puzzlegan", few_sprites.spec, loss=loss)
    nn.init.zeros_(model.discriminator.head.weight)
    nn.init.constant_(model.discriminator.head.bias, 0.25)
    losses = steps(model, few_sprites)["discriminator"].losses
    expected = fake_loss(loss, torch.tensor(0.25)).item()
    assert [losses[key].item() for key in ("strange_parts", "strange_rest")] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("loss", choices("text2image", "loss"))
def test_mismatched_pairs_follow_the_loss(loss, few_sprites):
    model = build("text2image", few_sprites.spec, loss=loss)
    nn.init.zeros_(model.discriminator.head.weight)
    nn.init.constant_(model.discriminator.head.bias, 0.25)
    losses = steps(model, few_sprites)["discriminator"].losses
    expected = 0.5 * fake_loss(loss, torch.tensor(0.25)).item()
    assert [losses[key].item() for key in ("mismatched", "fake")] == pytest.approx([expected] * 2)


def test_the_penalty_of_text2image_is_of_the_discriminator_at_the_images_own_captions(few_sprites):
    model = build("text2image", few_sprites.spec, penalty="r1", discriminator_norm="none")
    told = []
    judge = model.discriminator.judge
    model.discriminator.judge = lambda maps, text: (told.append(text), judge(maps, text))[1]
    steps(model, few_sprites)
    right, wrong, fake, penalty = told[:4]  # of the discriminator's step
    assert torch.equal(penalty, right) and torch.equal(fake, right) and not torch.equal(wrong, right)


# --- resume, ranks, export -------------------------------------------------------------------------------------------


def trainer_of(name: str, data: Prepared, hooks: Hooks | None = None) -> Trainer:
    model = build(name, data.spec, **COMBINATIONS[name])
    return make_trainer(name, data, hooks, model=model, num_images=2 * MIDDLE, checkpoint_every=MIDDLE)


def resumed(name: str, data: Prepared, middle: dict) -> dict:
    trainer = trainer_of(name, data)
    trainer.load_state(middle)
    trainer.run()
    return trainer.state()


@every_combination
def test_resume_is_bit_exact(name, few_sprites):
    states: dict[int, dict] = {}
    whole = trainer_of(name, few_sprites, Hooks(save=lambda n, state: states.update({n: through_disk(state)})))
    whole.run()
    assert differing(resumed(name, few_sprites, states[MIDDLE]), whole.state()) == []


def run_rank(rank: int, folder: str, data: Prepared) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in COMBINATIONS:
        states: dict[int, dict] = {}
        hooks = Hooks(save=lambda n, state, states=states: states.update({n: through_disk(state)}))
        trainer = trainer_of(name, data, hooks)
        trainer.run()
        again = resumed(name, data, states[MIDDLE])
        torch.save({"final": trainer.state(), "resumed": again}, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, few_sprites) -> Path:
    """A folder with what each of two ranks reached, and reached again from its middle."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder), few_sprites), nprocs=2)
    return folder


@every_combination
def test_two_ranks_end_alike_and_resume_bit_exactly(name, two_ranks):
    first, second = (torch.load(two_ranks / f"{name}-{rank}.pt") for rank in range(2))
    assert differing(first["final"], second["final"]) == []
    for rank in (first, second):
        assert differing(rank["resumed"], rank["final"]) == []


@pytest.mark.parametrize("name", [name for name in with_norm("spectral") if model_class(name).proof_nets])
def test_an_exported_discriminator_under_spectral_norm_judges_as_the_trained_one(name, few_sprites, tmp_path):
    model = build(name, few_sprites.spec, discriminator_norm="spectral")
    trainer = make_trainer(name, few_sprites, model=model)
    trainer.run()
    export.save(tmp_path / "export", trainer.ema, trainer.progress())
    loaded = export.load(tmp_path / "export").model.discriminator
    trained = model.discriminator.eval()
    assert differing(dict(loaded.state_dict()), dict(trained.state_dict())) == []
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    given = {"gan": (images.flatten(1),), "text2image": (images, torch.rand(4, 8))}.get(name, (images,))
    judged = [critic(*given) for critic in (loaded, trained)]
    assert differing({"0": judged[0]}, {"0": judged[1]}) == []
