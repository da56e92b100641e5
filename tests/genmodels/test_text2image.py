import math

import pytest
import torch
import torch.nn.functional as F

from genmodels.data.captions import alike
from genmodels.data.fields import DataSpec
from genmodels.losses import contrastive_loss
from genmodels.metrics.matching import r_precision, train_matcher
from genmodels.model import Noise, Progress, Stage
from genmodels.models.text2image import Text2Image, Text2ImageConfig, TextEncoder, discriminator_losses

WORDS = ("a", "red", "blue", "cat", "car")
SPEC = DataSpec("toy", 3, 16, (16,), 64, 16, classes=("x", "y"), vocabulary=WORDS, num_captions=2, num_words=4)
AT = Progress(0, 0, Stage("adversarial", 100, 16, 8), 0.0)


def make(**changes) -> Text2Image:
    torch.manual_seed(0)
    tiny = {"latent_dim": 4, "width": 4, "discriminator_width": 4, "text_dim": 8, "matching_width": 4}
    return Text2Image(Text2ImageConfig(**{**tiny, "embedding_dim": 8, **changes}), SPEC)


def step(model: Text2Image, phase: str, captions: torch.Tensor):
    batch = {"image": torch.zeros(len(captions), 3, 16, 16), "caption": captions}
    return model.training_step(batch, phase, AT, Noise(0, 0, 0, torch.device("cpu")), {})


def test_wrong_and_fake_pairs_weigh_half_of_right_ones():
    zeros, wrong = torch.zeros(4, 1), torch.ones(4, dtype=torch.bool)
    losses = discriminator_losses("non_saturating", zeros, zeros, zeros, wrong)
    assert [losses[k].item() / math.log(2) for k in ("real", "mismatched", "fake")] == pytest.approx([1, 0.5, 0.5])


def test_captions_that_are_right_by_chance_do_not_count_as_wrong():
    logits, is_wrong = torch.tensor([[9.0], [1.0]]), torch.tensor([False, True])
    losses = discriminator_losses("non_saturating", logits, logits, logits, is_wrong)
    torch.testing.assert_close(losses["mismatched"], 0.5 * F.softplus(torch.tensor(1.0)))
    losses = discriminator_losses("non_saturating", logits, logits, logits, ~is_wrong & is_wrong)
    assert losses["mismatched"] == 0
    everyone_alike = torch.full((4, 2, 4), 2)
    assert step(make(), "discriminator", everyone_alike).losses["mismatched"] == 0


def test_images_are_alike_that_share_one_caption():
    captions = torch.tensor([[[2, 3], [4, 0]], [[5, 0], [2, 3]], [[2, 4], [5, 5]]])
    assert alike(captions).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_wrong_class_needs_classes_and_reads_labels():
    assert make(wrong="class").batch_keys == ("image", "caption", "label")
    batch = {"caption": torch.arange(6).view(3, 1, 2), "label": torch.tensor([0, 1, 0])}
    assert make(wrong="class")._alike(batch)[0].tolist() == [True, False, True]
    assert make()._alike(batch)[0].tolist() == [True, False, False]


def test_pairs_that_match_too_are_no_negatives():
    images = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    texts = images[[0, 0, 2]]  # the second text says the same as the first
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    assert contrastive_loss(images, images, torch.eye(3, dtype=torch.bool), 0.01) < 0.01
    assert contrastive_loss(images[[0, 0, 2]], texts, same, 0.01) < 0.01
    assert contrastive_loss(images[[0, 0, 2]], texts, torch.eye(3, dtype=torch.bool), 0.01) > 0.3


def test_an_embedding_does_not_depend_on_the_padding():
    encoder = TextEncoder(8, 16)
    short, long = torch.tensor([[2, 3, 4]]), torch.tensor([[2, 3, 4, 0, 0, 0]])
    torch.testing.assert_close(encoder(short), encoder(long))
    assert encoder(short).square().mean().item() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(encoder(short), encoder(torch.tensor([[2, 3, 5]])))


def test_interpolated_texts_add_a_term_to_the_generators_loss_alone():
    captions = torch.randint(2, 7, (8, 2, 4), generator=torch.Generator().manual_seed(0))
    assert step(make(), "generator", captions).losses.keys() == {"adversarial", "interpolated"}
    assert step(make(interpolation=None), "generator", captions).losses.keys() == {"adversarial"}


def test_averaged_captions_are_the_mean_of_their_embeddings_and_as_long_as_one():
    model, captions = make(captions="average"), torch.randint(2, 7, (3, 2, 4))
    first, second = (model.text_encoder(captions[:, k]) for k in range(2))
    noise = Noise(0, 0, 0, torch.device("cpu"))
    mean, embedded = (first + second) / 2, model._embedded(captions, noise)
    torch.testing.assert_close(F.normalize(embedded, dim=1), F.normalize(mean, dim=1))
    torch.testing.assert_close(embedded.norm(dim=1), first.norm(dim=1))


def test_a_caption_becomes_tokens_and_one_without_known_words_is_refused():
    model = make()
    tokens = model.encode_condition(caption=["a red cat", "A shiny car!"])["caption"]
    assert tokens.tolist() == [[2, 3, 5, 0], [2, 1, 6, 0]]
    with pytest.raises(ValueError, match=r"'redd'.*did you mean 'red'") as error:
        model.encode_condition(caption=["redd"])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="takes no label; it takes caption"):
        model.encode_condition(label="3")


def test_the_matcher_finds_the_captions_of_held_out_images():
    generator = torch.Generator().manual_seed(0)
    hue = torch.randint(3, (400,), generator=generator)
    images = F.one_hot(hue, 3).float()[:, :, None, None] + 0.1 * torch.randn(400, 3, 8, 8, generator=generator)
    captions = (hue + 2).view(-1, 1, 1)
    matcher = train_matcher(images[:300], captions[:300], num_tokens=5, num_images=4000)
    right, chance = r_precision(matcher, images[300:], captions[300:, 0])
    assert right > 0.95 and chance == pytest.approx(1 / 70, rel=0.3)  # captions equal to the right one are left out
    shuffled, _ = r_precision(matcher, images[300:].roll(1, 0), captions[300:, 0])
    assert shuffled < 0.6
