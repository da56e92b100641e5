import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from genmodels.data.fields import DataSpec
from genmodels.layers import EqualizedConv2d, EqualizedLinear, PixelNorm, downsample2x, minibatch_stddev, upsample2x
from genmodels.losses import gradient_norm, gradient_penalty
from genmodels.model import Noise, Phase, Progress, ProofContext, Stage
from genmodels.models.progan import ProGAN, ProGANConfig, channels, doublings, fade_images

TINY = {"latent_dim": 8, "fmap_base": 64, "fmap_max": 8, "hold_images": 100, "fade_images": 60}


@pytest.fixture(autouse=True)
def deterministic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def spec(image_size: int = 16, num_channels: int = 3) -> DataSpec:
    return DataSpec("toy", num_channels, image_size, doublings(4, image_size), num_train=64, num_test=16)


def make(image_size: int = 16, **changes) -> ProGAN:
    return ProGAN(ProGANConfig(**{**TINY, **changes}), spec(image_size))


def at(stage: str, fraction: float = 1.0) -> Progress:
    return Progress(0, 0, Stage(stage, 100, int(stage.split()[0]), 8), fraction)


def step(model: ProGAN, phase: str, progress: Progress, batch: int = 8, images: torch.Tensor | None = None):
    size = progress.stage.image_size
    if images is None:
        images = torch.rand(batch, model.data.channels, size, size) * 2 - 1
    return model.training_step({"image": images}, phase, progress, Noise(0, 0, 0, torch.device("cpu")), {})


# --- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
def test_generator_is_continuous_at_both_ends_of_a_fade(size):
    model, latents = make(), torch.randn(6, 8)
    before, after = (model.generate(latents, {}, at(f"{s} hold")) for s in (size // 2, size))
    torch.testing.assert_close(model.generate(latents, {}, at(f"{size} fade", 0.0)), upsample2x(before))
    torch.testing.assert_close(model.generate(latents, {}, at(f"{size} fade", 1.0)), after)
    nearly = model.generate(latents, {}, at(f"{size} fade", 1 - 1e-6))
    torch.testing.assert_close(nearly, after, atol=1e-4, rtol=0)
    assert not torch.allclose(upsample2x(before), after, atol=1e-2)


@pytest.mark.parametrize("size", [8, 16])
def test_critic_is_continuous_at_both_ends_of_a_fade(size):
    model, images = make(), torch.rand(6, 3, size, size)
    torch.testing.assert_close(model.critic(images, fade=0.0), model.critic(downsample2x(images)))
    torch.testing.assert_close(model.critic(images, fade=1 - 1e-6), model.critic(images), atol=1e-4, rtol=0)
    assert not torch.allclose(model.critic(images, fade=0.0), model.critic(images), atol=1e-3)


def test_fade_is_a_straight_line_between_its_ends():
    generator, latents = make().generator, torch.randn(4, 8)
    ends = generator(latents, 8, 0.0), generator(latents, 8, 1.0)
    torch.testing.assert_close(generator(latents, 8, 0.25), 0.75 * ends[0] + 0.25 * ends[1])


def test_reals_fade_in_their_detail():
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fade_images(images, 0.0), upsample2x(downsample2x(images)))
    torch.testing.assert_close(fade_images(images, 0.25), 0.75 * upsample2x(downsample2x(images)) + 0.25 * images)
    assert fade_images(images, 1.0) is images


def test_critic_phase_sees_faded_reals():
    model, images = make(), torch.rand(8, 3, 8, 8)
    stats = step(model, "critic", at("8 fade", 0.5), images=images).stats
    faded, sharp = (model.critic(reals, fade=0.5).mean() for reals in (fade_images(images, 0.5), images))
    torch.testing.assert_close(stats["real_score"], faded)
    assert abs(faded - sharp) > 1e-4


def test_a_hold_skips_the_coarser_path():
    model, called = make(), []
    for net in (model.generator.to_rgb, model.critic.from_rgb):
        for size, layer in net.items():
            layer.register_forward_hook(lambda *_, size=size: called.append(size))
    step(model, "generator", at("8 hold"))
    assert called == ["8", "8"]
    step(model, "generator", at("8 fade", 0.5))
    assert sorted(called[2:]) == ["4", "4", "8", "8"]


# --- schedule --------------------------------------------------------------------------------------------------------


def table(model: ProGAN, num_images: int, batch_size: int = 16) -> list[tuple]:
    return [(s.name, s.num_images, s.image_size, s.batch_size) for s in model.stages(num_images, batch_size)]


def test_schedule_of_the_cifar_record():
    model = make(32, hold_images=400_000, fade_images=400_000)
    assert table(model, 20_000_000) == [
        ("4 hold", 400_000, 4, 16),
        ("8 fade", 400_000, 8, 16),
        ("8 hold", 400_000, 8, 16),
        ("16 fade", 400_000, 16, 16),
        ("16 hold", 400_000, 16, 16),
        ("32 fade", 400_000, 32, 16),
        ("32 hold", 17_600_000, 32, 16),
    ]


def test_schedule_follows_batch_sizes_and_start_size():
    model = make(16, start_size=8, batch_sizes={4: 64, 8: 32})
    assert table(model, 161) == [("8 hold", 100, 8, 32), ("16 fade", 60, 16, 16), ("16 hold", 1, 16, 16)]
    assert table(make(16, start_size=16), 7) == [("16 hold", 7, 16, 16)]


def test_too_few_images_to_grow():
    with pytest.raises(ValueError, match="fade_images 60 and hold_images 100 it takes more than 320"):
        make(16).stages(320, 8)
    assert sum(stage.num_images for stage in make(16).stages(321, 8)) == 321


@pytest.mark.parametrize(("image_size", "start_size"), [(12, 4), (8, 16), (2048, 4)])
def test_image_size_must_be_a_doubling_of_the_start(image_size, start_size):
    data = DataSpec("toy", 3, image_size, (image_size,), 1, 1)
    with pytest.raises(
        ValueError, match=rf"image_size {image_size} .* start_size {start_size}; choices: {start_size}, "
    ):
        ProGAN(ProGANConfig(**TINY, start_size=start_size), data)


@pytest.mark.parametrize(
    "changes", [{"start_size": 5}, {"batch_sizes": {10: 4}}, {"lr_scales": {4: 0.0}}, {"betas": (0, 1)}]
)
def test_config_refuses(changes):
    with pytest.raises(ValidationError):
        ProGANConfig(**changes)


def test_config_survives_json():
    config = ProGANConfig(batch_sizes={4: 128}, lr_scales={16: 1.5})
    assert ProGANConfig(**config.model_dump(mode="json")) == config
    assert ProGANConfig.model_validate_json(config.model_dump_json()) == config


def test_learning_rate_follows_the_size():
    model = make(lr_scales={16: 1.5})
    assert [model.lr_scale(model.phases[0], at(stage)) for stage in ("8 hold", "16 fade")] == [1.0, 1.5]


def test_phases_follow_the_config():
    assert make().phases == (Phase("critic", ("critic",)), Phase("generator", ("generator",)))
    assert make(critic_steps=5).phases[1].every == 5
    assert make(simultaneous=True).simultaneous and not make().simultaneous


def test_stage_stats_name_resolution_and_fade():
    model = make()
    assert model.stage_stats(at("16 fade", 0.25)) == {"resolution": 16.0, "fade": 0.25}
    assert model.stage_stats(at("16 hold", 0.25)) == {"resolution": 16.0, "fade": 1.0}


# --- architecture ----------------------------------------------------------------------------------------------------


def test_channels_are_the_papers():
    widths = [channels(size, 8192, 512) for size in doublings(4, 1024)]
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert [channels(size, 4096, 128) for size in doublings(4, 32)] == [128] * 4
    with pytest.raises(ValueError, match="fmap_base 8 leaves no channels at size 32"):
        channels(32, 8, 8)


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        model = ProGAN(ProGANConfig(), spec(1024))
    for net in (model.generator, model.critic):
        assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == 23.1  # table 2


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_equalised_layers_keep_the_variance(gain):
    maps = torch.randn(64, 32, 8, 8)
    conv, linear = EqualizedConv2d(32, 64, 3, gain), EqualizedLinear(512, 256, gain)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.02)
    assert (conv.weight * conv.scale).std().item() == pytest.approx(gain / math.sqrt(32 * 9), rel=0.02)
    assert (linear.weight * linear.scale).std().item() == pytest.approx(gain / math.sqrt(512), rel=0.02)
    assert conv(maps)[:, :, 1:-1, 1:-1].std().item() == pytest.approx(gain, rel=0.05)
    assert linear(torch.randn(64, 512)).std().item() == pytest.approx(gain, rel=0.05)


def test_gains_of_the_special_layers():
    model = make()
    assert model.generator.stem[1].scale == pytest.approx(math.sqrt(2) / 4 / math.sqrt(8))
    assert model.generator.to_rgb["16"].scale == pytest.approx(1 / math.sqrt(8))
    assert model.critic.head[-1].scale == pytest.approx(1 / math.sqrt(8))
    assert model.critic.head[2].scale == pytest.approx(math.sqrt(2) / math.sqrt(8 * 16))
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_pixel_norm_gives_unit_mean_square():
    for features in (torch.randn(3, 7, 4, 4) * 5, torch.randn(3, 7) * 5):
        mean_square = PixelNorm()(features).square().mean(1)
        torch.testing.assert_close(mean_square, torch.ones_like(mean_square))


def test_generator_normalises_every_hidden_map():
    model, maps = make(), []
    for module in model.generator.modules():
        if isinstance(module, nn.LeakyReLU):
            module.register_forward_hook(lambda *_: maps.append("activation"))
        if isinstance(module, PixelNorm):
            module.register_forward_hook(lambda *_: maps.append("norm"))
    model.generator(torch.randn(2, 8), 16)
    assert maps == ["norm"] + ["activation", "norm"] * 6


@pytest.mark.parametrize(("batch", "group_size", "group"), [(8, 4, 4), (6, 4, 3), (2, 4, 2), (5, 4, 1), (7, 8, 7)])
def test_minibatch_stddev_against_numpy(batch, group_size, group):
    maps = torch.randn(batch, 3, 2, 2, dtype=torch.float32)
    expected = np.empty(batch)
    for first in range(batch // group):
        members = np.arange(first, batch, batch // group)
        stddev = np.sqrt(maps.numpy()[members].var(axis=0, ddof=0) + 1e-8)
        expected[members] = stddev.mean()
    result = minibatch_stddev(maps, group_size)
    assert result.shape == (batch, 4, 2, 2)
    assert torch.equal(result[:, :3], maps)
    extra = np.broadcast_to(expected[:, None, None], (batch, 2, 2))
    np.testing.assert_allclose(result[:, 3].numpy(), extra, rtol=1e-5, atol=1e-8)


def test_minibatch_stddev_has_finite_gradients_for_equal_images():
    maps = torch.ones(4, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(minibatch_stddev(maps, 4)[:, -1].sum(), maps, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(maps.grad).all()


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_penalty_of_a_linear_critic(target):
    direction = torch.nn.functional.normalize(torch.randn(3 * 8 * 8), dim=0)

    def critic_of_slope(slope):
        return lambda images: images.flatten(1) @ (slope * direction)

    real, fake, alpha = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), torch.rand(4)
    matched = gradient_penalty(critic_of_slope(target), real, fake, alpha, target)
    assert matched.item() == pytest.approx(0, abs=1e-9)
    unit = gradient_penalty(critic_of_slope(3.0), real, fake, alpha, target)
    assert unit.item() == pytest.approx((3 - target) ** 2 / target**2, rel=1e-4)


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_penalty_term_follows_weight_and_target(target):
    model, images = make(penalty_target=target, penalty_weight=3.0), torch.rand(8, 3, 8, 8)
    noise = Noise(0, 0, 0, torch.device("cpu"))
    fake = model.generator(noise.normal(8, 8), 8)
    norms = gradient_norm(model.critic, torch.lerp(images, fake, noise.uniform(8).view(-1, 1, 1, 1)))
    losses = step(model, "critic", at("8 hold"), images=images).losses
    torch.testing.assert_close(losses["penalty"], 3 * ((norms - target) / target).square().mean())


def test_losses_of_a_constant_critic():
    model = make(penalty_target=750.0)
    with torch.no_grad():
        model.critic.head[-1].weight.zero_()
        model.critic.head[-1].bias.fill_(3.0)
    losses = step(model, "critic", at("8 hold")).losses
    assert losses["adversarial"].item() == 0
    assert losses["drift"].item() == pytest.approx(1e-3 * 9)
    assert losses["penalty"].item() == pytest.approx(10.0)  # 10 (0 - 750)^2 / 750^2
    assert step(model, "generator", at("8 hold")).losses["adversarial"].item() == -3


def test_drift_is_of_the_real_scores_alone():
    model, images = make(), torch.rand(8, 3, 8, 8)
    losses, stats = step(model, "critic", at("8 hold"), images=images)
    real = model.critic(images)
    assert losses["drift"].item() == pytest.approx(1e-3 * real.square().mean().item())
    assert stats["real_score"].item() == pytest.approx(real.mean().item())
    assert losses["adversarial"].item() == pytest.approx((stats["fake_score"] - stats["real_score"]).item())


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize(("phase", "other"), [("critic", "generator"), ("generator", "critic")])
def test_each_phase_trains_its_network_up_to_the_size(phase, other, size):
    model = make()
    getattr(model, other).requires_grad_(False)
    sum(step(model, phase, at(f"{size} fade" if size > 4 else "4 hold", 0.5)).losses.values()).backward()
    assert all(parameter.grad is None for parameter in getattr(model, other).parameters())
    for name, parameter in getattr(model, phase).named_parameters():
        layer, level = name.split(".")[:2]
        rgb_used = int(level) in (size, size // 2) if layer in ("to_rgb", "from_rgb") else True
        block_used = int(level) <= size if layer == "blocks" else True
        assert (parameter.grad is not None) == (rgb_used and block_used), name
        if parameter.grad is not None and name != "head.5.bias":  # the scores' common offset: only drift moves it
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_critic_phase_leaves_the_generator_untouched():
    model = make()  # nothing frozen: the fakes themselves must be detached
    sum(step(model, "critic", at("8 hold")).losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())


def test_a_step_never_reads_the_device():
    with torch.device("meta"):  # a meta tensor has no values: .item() or a branch on it raises
        model = make()
    noise = Mock(normal=lambda *shape: torch.empty(shape, device="meta"))
    noise.uniform = noise.normal
    batch = {"image": torch.empty(8, 3, 8, 8, device="meta")}
    for phase in ("critic", "generator"):
        output = model.training_step(batch, phase, at("8 fade", 0.5), noise, {})
        sum(output.losses.values()).backward()
        assert all(value.shape == () and value.is_meta for value in output.losses.values())


@pytest.mark.parametrize("phase", ["critic", "generator"])
def test_losses_are_fp32_under_autocast(phase):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = step(make(), phase, at("8 fade", 0.5))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


def test_samples_are_clamped_latents_seeded():
    model = make()
    latents = model.latent(5, torch.Generator().manual_seed(3))
    assert torch.equal(latents, model.latent(5, torch.Generator().manual_seed(3))) and latents.shape == (5, 8)
    with torch.no_grad():
        model.generator.to_rgb["8"].weight.mul_(100)
    images = model.generate(latents, {}, at("8 hold"))
    assert images.shape == (5, 3, 8, 8) and images.min() == -1 and images.max() == 1


@pytest.mark.parametrize("resample", ["up", "down"])
def test_a_fused_convolution_equals_the_two_steps_it_stands_for(resample):
    fused, plain = (EqualizedConv2d(3, 5, 3, resample=how).double() for how in (resample, None))
    plain.load_state_dict(fused.state_dict())
    maps = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(maps), plain(upsample2x(maps)) if resample == "up" else downsample2x(plain(maps)))


# --- proofs ----------------------------------------------------------------------------------------------------------


def context(history, scores) -> ProofContext:
    return ProofContext({}, {}, False, torch.empty(0), lambda images: images, scores, history)


def test_proofs_compare_the_full_size_snapshots():
    history = [
        {"num_images": 10, "stage": "4 hold", "swd": 1.0},
        {"num_images": 20, "stage": "16 fade", "swd": 40.0, "swd_16": 50.0},
        {"num_images": 30, "stage": "16 hold", "swd": 90.0, "swd_16": 90.0},
        {"num_images": 40, "stage": "16 hold", "swd": 30.0, "swd_16": 60.0},
    ]
    proofs = make().proofs(context(history, {"ms_ssim": 0.30, "ms_ssim_real": 0.28}))
    assert [(p.measured, p.baseline, p.holds) for p in proofs[:2]] == [(30.0, 40.0, True), (60.0, 50.0, False)]
    assert proofs[2].measured == pytest.approx(0.02) and proofs[2].holds
    assert not make().proofs(context([], {"ms_ssim": 0.9, "ms_ssim_real": 0.28}))[0].holds


def test_proofs_without_measurements_are_none():
    assert make().proofs(context([], {})) == []
    assert make().proofs(context([{"num_images": 1, "stage": "16 hold", "swd": 1.0}], {"ms_ssim": 0.1})) == []
