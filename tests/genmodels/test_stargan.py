import pytest
import torch

from genmodels.convnets import ResNetTranslator
from genmodels.data.fields import DataSpec
from genmodels.metrics.features import train_extractor
from genmodels.model import Noise, Progress, ProofContext, Stage
from genmodels.models.stargan import StarGAN, StarGANConfig, _read_right, attribute_loss

TINY = {"width": 4, "num_blocks": 1, "discriminator_width": 4}
START = Progress(0, 0, Stage("train", 100, 16, 8), 0.0)
NAMES = ("hat", "night", "striped")


def make(image_size: int = 16, attributes=NAMES, **changes) -> StarGAN:
    torch.manual_seed(0)
    spec = DataSpec("toy", 3, image_size, (image_size,), num_train=8, num_test=8, attributes=attributes)
    return StarGAN(StarGANConfig(**{**TINY, **changes}), spec)


def make_batch() -> dict[str, torch.Tensor]:
    return {"image": torch.rand(8, 3, 16, 16) * 2 - 1, "attributes": (torch.rand(8, 3) < 0.5).float()}


def test_attributes_reach_the_image_through_zero_padding_but_not_through_reflection():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    change = {}
    for padding in ("zeros", "reflect"):
        translator = ResNetTranslator(4, 3, 4, 1, padding, True, 4, 7)
        off, on = (translator(torch.cat([images, torch.full((2, 1, 16, 16), v)], 1)) for v in (0.0, 1.0))
        change[padding] = (on - off).abs().max()
    assert change["zeros"] > 1e-2 and change["reflect"] < 1e-4


def test_targets_are_the_labels_of_the_batch_in_another_order():
    model, batch, seen = make(), make_batch(), []
    model.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for step in range(4):
        model.training_step(batch, "generator", START, Noise(0, step, 0, torch.device("cpu")), {})
    targets, own = seen[::2], seen[1]  # there and back
    assert all(sorted(target.tolist()) == sorted(own.tolist()) for target in targets)
    assert any(not torch.equal(target, own) for target in targets)
    assert torch.equal(own, batch["attributes"])


def test_chosen_attributes_are_translated_in_the_order_given():
    model, batch = make(attributes=NAMES), make_batch()
    chosen = StarGAN(StarGANConfig(**TINY, attributes=("striped", "hat")), model.data)
    cond = chosen.condition(batch)
    assert torch.equal(cond["attributes"], batch["attributes"][:, [2, 0]].roll(1, 0))
    assert torch.equal(model.condition(batch)["attributes"], batch["attributes"].roll(1, 0))


@pytest.mark.parametrize(("size", "layers", "side"), [(128, 6, 2), (32, 4, 2), (48, 4, 3)])
def test_the_discriminator_halves_down_to_two_or_three_pixels(size, layers, side):
    discriminator = make(size).discriminator
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in discriminator.layers) == layers
    scores, logits = discriminator(torch.zeros(2, 3, size, size))
    assert scores.shape == (2, 1, side, side) and logits.shape == (2, 3)


def test_attribute_loss_sums_over_attributes_and_averages_over_images():
    logits, labels = torch.zeros(4, 3), torch.ones(4, 3)
    torch.testing.assert_close(attribute_loss(logits, labels), torch.tensor(3 * 0.6931472))


def test_exclusive_attributes_are_one_choice():
    logits, labels = torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(attribute_loss(logits, labels, exclusive=True), torch.tensor(1.0986123))


@pytest.mark.parametrize(("exclusive", "expected"), [(False, [[1, 1], [0, 1]]), (True, [[1, 0], [1, 0]])])
def test_changing_an_attribute_leaves_the_others_or_replaces_them(exclusive, expected):
    attributes = torch.tensor([[0.0, 1.0], [0.0, 1.0] if exclusive else [1.0, 1.0]])
    model = make(attributes=("a", "b"), exclusive=exclusive)
    assert model._changed(attributes, 0).tolist() == expected


def test_the_true_target_is_another_image_of_the_same_group():
    model = make()
    images, own = torch.rand(4, 3, 16, 16), torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0]])
    test = {"image": images, "attributes": own, "group": torch.tensor([0, 0, 1, 2])}
    context = ProofContext(test, test, False, images, lambda x: x, {}, [])
    (proof,) = model._target_proofs(context)
    assert proof.baseline == pytest.approx((images[0] - images[1]).abs().mean().item())
    test["group"] = torch.tensor([0, 0, 1, 1])  # the last two differ, and not in their attributes: photographs, say
    assert model._target_proofs(context) == []


def test_a_judge_that_never_names_a_rare_attribute_cannot_judge_it():
    own = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    right = torch.tensor([[0.0, 1], [1, 1], [1, 1], [1, 1]])  # the first is taken for the second kind
    target = torch.tensor([[1.0, 0]]).expand(4, 2)
    translated = (target != own).any(1)
    assert _read_right(right, own, target, translated, 0) == 0  # of three of four images that are read right
    assert _read_right(right, own, 1 - own, torch.ones(4, dtype=torch.bool), 0) == 0.25


def test_a_request_is_laid_over_what_the_discriminator_reads():
    model, images = make(), torch.rand(5, 3, 16, 16)
    read = (model.discriminator(images)[1] > 0).float()
    cond = model.encode_condition(source=images, attributes="night=0, hat=1")
    assert torch.equal(cond["attributes"][:, 2], read[:, 2])
    assert cond["attributes"][:, :2].unique(dim=0).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ("nigth=1", ["'nigth'", "'night'", "hat, night, striped"]),
        ("hat=2", ["hat='2'", "hat=0, hat=1"]),
        ("hat=1,hat=0", ["names hat twice"]),
    ],
)
def test_a_wrong_attribute_is_named_with_the_choices(attributes, words):
    with pytest.raises(ValueError) as error:
        make().encode_condition(source=torch.rand(1, 3, 16, 16), attributes=attributes)
    assert all(word in str(error.value) for word in words)


def test_of_exclusive_attributes_one_is_asked_for():
    with pytest.raises(ValueError, match="an image has one of hat, night, striped"):
        make(exclusive=True).encode_condition(source=torch.rand(1, 3, 16, 16), attributes="hat=1,night=1")


def test_data_without_attributes_or_with_others_are_refused():
    with pytest.raises(ValueError, match="has none"):
        make(attributes=())
    with pytest.raises(ValueError, match="did you mean 'hat'"):
        StarGAN(StarGANConfig(attributes=("hats",)), make().data)


def test_the_extractor_tells_attributes_apart_one_by_one():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(128, 2, generator=generator) < 0.5).float()
    images = torch.rand(128, 2, 8, 8, generator=generator) * 0.2 + labels[:, :, None, None] - 0.5
    judge = train_extractor(images, labels, num_images=1024)
    assert ((judge.logits(images) > 0).float() == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attributes": ()}, "name 1 or more"),
        ({"attributes": ("hat", "hat")}, "each once"),
        ({"attributes": ("hat",), "exclusive": True}, "name 2 or more"),
    ],
)
def test_attributes_that_leave_nothing_to_learn_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"attributes .*{words}.*choices: hat, night, striped"):
        StarGAN(StarGANConfig(**TINY, **changes), make().data)


def test_a_judge_knows_attributes_that_its_images_lack():
    images, labels = torch.rand(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
    assert train_extractor(images, labels, num_images=64, num_classes=3).logits(images).shape == (8, 3)
