import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genmodels.data.fields import DataSpec
from genmodels.model import Noise, Progress, ProofContext, Stage
from genmodels.models.infogan import InfoGAN, InfoGANConfig, information

SPEC = DataSpec("toy", 1, 16, (16,), num_train=64, num_test=16)
AT = Progress(0, 0, Stage("train", 100, 16, 8), 0.0)


def make(**changes) -> InfoGAN:
    torch.manual_seed(0)
    tiny = {"num_categories": 4, "noise_dim": 3, "width": 4, "hidden_dim": 16, "q_dim": 8}
    return InfoGAN(InfoGANConfig(**{**tiny, **changes}), SPEC)


def step(model: InfoGAN, phase: str):
    return model.training_step({"image": torch.zeros(8, 1, 16, 16)}, phase, AT, Noise(0, 0, 0, torch.device("cpu")), {})


def test_an_ignorant_q_has_no_information_and_a_certain_one_all_of_it():
    category, empty = torch.arange(8) % 4, torch.zeros(8, 0)
    certain = 50.0 * F.one_hot(category, 4).float()  # a second softmax would flatten these to 0.74 nats
    assert information(torch.zeros(8, 4), empty, category, empty)[0].item() == pytest.approx(0, abs=1e-6)
    assert information(certain, empty, category, empty)[0].item() == pytest.approx(math.log(4), abs=1e-6)


def test_the_continuous_bound_is_the_gaussian_log_density_and_the_codes_entropy():
    codes, means = torch.rand(8, 2) * 2 - 1, torch.rand(8, 2)
    expected = torch.distributions.Normal(means, 1).log_prob(codes).sum(1).mean() + 2 * math.log(2)
    bound = information(torch.zeros(8, 4), means, torch.zeros(8).long(), codes)[1]
    torch.testing.assert_close(bound, expected)


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_information_is_subtracted_from_both_losses(phase):
    output = step(make(information_weight=3.0), phase)
    nats = output.stats["category_nats"] + output.stats["continuous_nats"]
    torch.testing.assert_close(output.losses["information"], -3.0 * nats)


def test_the_discriminators_phase_trains_q_and_the_generators_only_passes_through_it():
    model = make()
    step(model, "discriminator").losses["information"].backward()
    assert all(p.grad is not None for p in model.discriminator.q.parameters())
    assert all(p.grad is None for p in model.generator.parameters())
    model.discriminator.requires_grad_(False)
    step(model, "generator").losses["information"].backward()
    assert all(p.grad is not None for p in model.generator.parameters())


def test_a_stated_category_replaces_the_latents_own():
    model = make().eval()
    latents = model.latent(5, torch.Generator().manual_seed(0))
    fixed = latents.clone()
    fixed[:, 3:7] = F.one_hot(torch.tensor(2), 4).float()
    cond = {"category": model.encode_condition(label="2")["category"].expand(5)}
    torch.testing.assert_close(model.generate(latents, cond, AT), model.generate(fixed, {}, AT))
    with pytest.raises(ValueError, match="label '4'.*choices: 0, 1, 2, 3"):
        model.encode_condition(label="4")
    with pytest.raises(ValueError, match="no caption"):
        model.encode_condition(caption=["a cat"])


def test_a_traversal_moves_one_code_a_row():
    model = make()
    latent = model.latent(1, torch.Generator().manual_seed(0))[0]
    rows = model.traversal(latent, 4)
    assert rows.shape == (3, 4, 9) and torch.equal(rows[0, :, 3:7], torch.eye(4))
    for row, code in ((1, 7), (2, 8)):
        others = [i for i in range(9) if i != code]
        assert torch.equal(rows[row][:, others], latent[others].expand(4, -1))
        assert rows[row, [0, -1], code].tolist() == [-1, 1]


class ReadsClass(nn.Module):
    """A Q that sees the class, the image's brightness, under another number."""

    def logit_and_code(self, images):
        label = images[:, 0, 0, 0].round().long()
        return torch.zeros(len(images), 1), F.one_hot((label + 1) % 4, 4).float(), torch.zeros(len(images), 2)


def test_class_accuracy_ignores_what_the_categories_are_called():
    model, labels = make(), torch.arange(32) % 4
    model.discriminator = ReadsClass()
    batch = {"image": labels.float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16), "label": labels}
    context = ProofContext(batch, batch, False, batch["image"], lambda images: images.flatten(1), {}, [])
    accuracy = model.eval().proofs(context)[-1]
    assert accuracy.measured == 1 and accuracy.baseline == 0.5 and accuracy.holds


def test_of_two_classes_a_perfect_q_is_shown(monkeypatch):
    model, labels = make().eval(), torch.arange(16) % 2
    images = (2.0 * labels - 1).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    batch = {"image": images, "label": labels}
    monkeypatch.setattr(model, "_categories", lambda images: (images[:, 0, 0, 0] > 0).long())
    context = ProofContext(batch, batch, False, images, lambda x: x.flatten(1), {}, [])
    named = next(proof for proof in model.proofs(context) if "names the class" in proof.claim)
    assert named.holds and named.measured == 1 and named.baseline == 0.75
