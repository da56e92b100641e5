"""What is measured: each model at a stated size, ours and the plain script's, on the same random batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.plain import load_weights, plain_script
from genmodels.config import TrainConfig
from genmodels.data.fields import DataSpec
from genmodels.model import Batch, GenerativeModel, model_class
from genmodels.trainer import Trainer

NUM_WORDS, NUM_CAPTIONS, NUM_PARTS, NUM_ATTRIBUTES = 12, 2, 3, 5


@dataclass(frozen=True)
class Case:
    """A model at one size: its settings, the plain script's, and how many steps make one round of its phases."""

    model: str
    image_size: int
    batch_size: int
    settings: dict[str, Any]
    plain: dict[str, Any]
    channels: int = 3
    period: int = 1  # steps after which every phase has run
    aim: dict[str, float] = field(default_factory=dict)  # by precision

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.model} {self.image_size} px"

    def spec(self) -> DataSpec:
        """A data set of this size that offers every key."""
        return DataSpec(
            "noise",
            self.channels,
            self.image_size,
            (self.image_size,),
            num_train=64,
            num_test=0,
            attributes=tuple(f"attribute{i}" for i in range(NUM_ATTRIBUTES)),
            domains=("A", "B"),
            num_parts=NUM_PARTS,
            vocabulary=tuple(f"word{i}" for i in range(30)),
            num_captions=NUM_CAPTIONS,
            num_words=NUM_WORDS,
        )

    def trainer(self, precision: str = "fp32", device: str = "cpu") -> Trainer:
        """Our side, at the start of its last stage."""
        torch.manual_seed(0)
        cls = model_class(self.model)
        model = cls(cls.Config(**self.settings), self.spec())
        config = TrainConfig(num_images=10**9, batch_size=self.batch_size, precision=precision, log_every=10**9)
        trainer = Trainer(model, config, lambda *_: None, device=device)  # type: ignore[arg-type, return-value]
        trainer.stage_index = len(trainer.stages) - 1
        trainer.num_images = trainer._stage_start(trainer.stage_index)
        return trainer

    def script(self, model: GenerativeModel) -> nn.Module:
        """The other side, with the model's weights."""
        script = plain_script(self.model, channels=self.channels, size=self.image_size, **self.plain)
        load_weights(script, {name: used_parameters(net, self.image_size) for name, net in model.named_children()})
        return script

    def batch(self, seed: int) -> Batch:
        """Random values for every key that a model may ask for, as a loader serves them."""
        generator = torch.Generator().manual_seed(seed)
        num, size = self.batch_size, self.image_size

        def images() -> Tensor:
            return torch.randint(256, (num, size, size, self.channels), generator=generator, dtype=torch.uint8)

        corners = 0.5 * torch.rand(num, NUM_PARTS, 2, generator=generator)
        return {
            **{key: images().permute(0, 3, 1, 2) for key in ("image", "image_A", "image_B")},
            "attributes": torch.randint(2, (num, NUM_ATTRIBUTES), generator=generator).float(),
            "caption": torch.randint(2, 32, (num, NUM_CAPTIONS, NUM_WORDS), generator=generator),
            "parts": torch.cat([corners, corners + 0.4], 2),
        }


def used_parameters(net: nn.Module, image_size: int) -> list[Tensor]:
    """A network's parameters in order, without ProGAN's layers to and from images of other sizes."""
    return [
        parameter
        for name, parameter in net.named_parameters()
        if "_rgb." not in name or name.split(".")[1] == str(image_size)
    ]


def progan(size: int, batch_size: int, **aim: float) -> Case:
    """Sixteenths of the paper's channels at large sizes, as public comparisons on CPUs have it."""
    sizes = {"latent_dim": 128, "fmap_base": 2048, "fmap_max": 128}
    return Case("progan", size, batch_size, {**sizes, "start_size": size}, sizes, aim=aim)


CASES = [
    progan(16, 16, fp32=1.4, bf16=2.4),
    progan(32, 16, fp32=1.5, bf16=2.8),
    progan(64, 16, fp32=1.75, bf16=3.4),
    progan(128, 8, fp32=1.9, bf16=3.6),
    Case(
        "dcgan",
        64,
        64,
        {"width": 32, "discriminator_width": 32},
        {"latent_dim": 100, "width": 32},
        aim={"fp32": 1.15, "bf16": 1.9},
    ),
    Case(
        "infogan",
        32,
        64,
        {"width": 32, "hidden_dim": 512},
        {"noise_dim": 62, "num_categories": 10, "num_continuous": 2, "width": 32, "hidden": 512},
        aim={"fp32": 1.15, "bf16": 1.9},
    ),
    Case(
        "text2image",
        64,
        32,
        {"width": 32, "discriminator_width": 32},
        {"num_tokens": 32, "latent_dim": 100, "width": 32, "embedding_dim": 128, "text_dim": 128},
        aim={"fp32": 1.15, "bf16": 1.9},
    ),
    Case(
        "puzzlegan",
        64,
        16,
        {"width": 32, "discriminator_width": 32},
        {"noise_dim": 128, "embedding_dim": 512, "width": 32},
        period=2,
        aim={"fp32": 1.15, "bf16": 1.9},
    ),
    Case(
        "cyclegan",
        128,
        1,
        {"width": 32, "discriminator_width": 32},
        {"width": 32, "num_blocks": 6},
        aim={"fp32": 1.0, "bf16": 1.6},
    ),
    Case(
        "stargan",
        64,
        8,
        {"width": 32, "discriminator_width": 32},
        {"num_attributes": NUM_ATTRIBUTES, "width": 32, "num_blocks": 6},
        period=5,
        aim={"fp32": 1.0, "bf16": 1.6},
    ),
    Case(
        "autoencoder",
        64,
        64,
        {"width": 32},
        {"latent_dim": 64, "width": 32},
        aim={"fp32": 1.15, "bf16": 2.0},
    ),
    Case(
        "vae",
        64,
        64,
        {"width": 32, "sigma": 0.6},
        {"latent_dim": 64, "width": 32, "sigma": 0.6},
        aim={"fp32": 1.15, "bf16": 2.0},
    ),
    Case(
        "aae",
        64,
        64,
        {"width": 32},
        {"latent_dim": 8, "width": 32, "hidden": 1000},
        aim={"fp32": 1.15, "bf16": 2.0},
    ),
    Case(
        "gan",
        28,
        128,
        {},
        {"latent_dim": 100, "hidden": 1200},
        channels=1,
        aim={"fp32": 1.1, "bf16": 1.1},
    ),
]
