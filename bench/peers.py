"""Our training steps against those of packages from PyPI, at equal channels and batches.

    pip install --no-deps --target PEERS pro_gan_pth pythae imageio dill
    python -m bench.peers PEERS

They are no dependency of ours. Each does its step as its own trainer calls it: pro_gan_pth its WGAN-GP, pythae its VAE
around the plain script's encoder and decoder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from bench.cases import CASES, Case
from bench.report import Row, show
from bench.steps import Action, both_sides, compare
from genmodels.trainer import to_float


def pro_gan_pth(case: Case) -> Action:
    """One update of the critic and one of the generator, and its averaged weights."""
    for name in ("torchvision", "torchvision.utils", "torchvision.transforms", "torch.utils.tensorboard"):
        sys.modules.setdefault(name, _Anything(name))  # it imports them for pictures alone
    from pro_gan_pytorch import custom_layers, gan, losses, networks

    theirs, since = custom_layers.EqualizedConvTranspose2d, torch.nn.ConvTranspose2d._output_padding
    theirs._output_padding = lambda *args: since(*args, num_spatial_dims=2)  # newer torch than it was written for
    channels = networks.nf.__defaults__
    networks.nf.__defaults__ = (case.settings["fmap_base"], *channels[1:3], case.settings["fmap_max"])
    depth, size = int(math.log2(case.image_size)), case.settings["latent_dim"]
    with contextlib.redirect_stdout(io.StringIO()):
        model = gan.ProGAN(networks.Generator(depth, 3, size), networks.Discriminator(depth, 3, size))
    networks.nf.__defaults__ = channels
    critic, generator = (
        torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.99), eps=1e-8) for net in (model.dis, model.gen)
    )
    loss, images = losses.WganGP(), to_float(case.batch(0)["image"])

    def step() -> None:
        latents = torch.randn(len(images), size)
        model.optimize_discriminator(loss, critic, latents, images, depth, 1.0)
        model.optimize_generator(loss, generator, latents, images, depth, 1.0)
        custom_layers.update_average(model.gen_shadow, model.gen, beta=model.ema_beta)

    return step


def pythae(case: Case) -> Action:
    """One update of its VAE."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    script = case.script(case.trainer().model)
    side = case.image_size

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.net = script.encoder

        def forward(self, images: torch.Tensor) -> Any:
            mean, log_variance = self.net(images).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.net = script.decoder

        def forward(self, codes: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(codes).tanh())

    config = VAEConfig(input_dim=(3, side, side), latent_dim=case.plain["latent_dim"])
    model = VAE(config, Encoder(), Decoder()).train()
    optimizer, images = torch.optim.Adam(model.parameters(), 1e-3), to_float(case.batch(0)["image"])

    def step() -> None:
        optimizer.zero_grad()
        model({"data": images}).loss.backward()
        optimizer.step()

    return step


class _Anything(ModuleType):
    """A module of which any name may be imported, and called."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


PEERS: dict[str, Callable[[Case], Action]] = {"progan": pro_gan_pth, "vae": pythae}


def peer_rows(rounds: int) -> Iterator[Row]:
    """Ours and the peer's in turn, on one thread."""
    torch.set_num_threads(1)
    for case in CASES:
        if peer := PEERS.get(case.model):
            name = f"step {case.name}, batch {case.batch_size}, fp32, 1 thread, against {peer.__name__}"
            yield compare(name, case, (both_sides(case, "fp32")[0], peer(case)), rounds, aim=None)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where pip has put them")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sys.path.append(options.folder)
    show(peer_rows(options.rounds))


if __name__ == "__main__":
    main()
