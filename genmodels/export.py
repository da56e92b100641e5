"""A sampling folder: averaged weights, what rebuilds their networks, and a card. No pickle anywhere.

model.safetensors   the networks that sampling needs, and held-out conditions to sample under
config.json         model, settings, data, stage, sha256 of the weights
README.md           the model card
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from genmodels.data.fields import DataSpec
from genmodels.files import check_room, replace_folder, sha256_file, write_json
from genmodels.model import Batch, GenerativeModel, Progress, Stage, mix_seed, model_class

CONDITIONS = "conditions"  # prefix of the conditions among the tensors
CHUNK = 16  # latents are drawn and decoded in chunks of this size, so that image i does not depend on how many follow


class ExportError(ValueError):
    """A folder is no whole export; the message says what is missing or altered."""


class Sampler:
    """A model's averaged networks, ready to sample; what `load` returns."""

    def __init__(
        self,
        model: GenerativeModel,
        progress: Progress,
        info: dict[str, Any],
        device: torch.device | str,
        conditions: Batch | None = None,
    ):
        self.model, self.progress, self.info, self.device = model, progress, info, torch.device(device)
        self.conditions = conditions or {}
        self.nets = [getattr(model, name) for name in model.ema_nets]

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: torch.device | str = "cpu") -> Sampler:
        """The same as `load`."""
        return load(folder, device)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the sampling folder again, with the same weights' sha256."""
        save(Path(folder), self.model, self.progress, self.info["info"], self.conditions)

    def sample(self, num: int, seed: int = 0, cond: Batch | None = None) -> Tensor:
        """Images [num, C, H, W] in [-1, 1] on the CPU; image i is a function of (seed, i, cond) alone.

        cond: tensors [K, ...] as `encode_condition` makes them, used in turn; None: the held-out conditions that were
        exported with the model, where it needs any.
        """
        return self.decode(*self.inputs(num, seed, cond))

    def inputs(self, num: int, seed: int = 0, cond: Batch | None = None) -> tuple[Tensor, Batch]:
        """Latents and conditions [num, ...] of the images that `sample` makes."""
        return self.latents(num, seed), self.conditions_for(num, seed) if cond is None else turns(cond, num)

    def conditions_for(self, num: int, seed: int = 0) -> Batch:
        """The exported conditions [num, ...] in turn; the seed says with which to begin."""
        return turns(self.conditions, num, start=seed * CHUNK)

    def latents(self, num: int, seed: int = 0) -> Tensor:
        """Latents [num, ...] on the CPU."""
        chunks = []
        for chunk in range(-(-num // CHUNK)):
            generator = torch.Generator().manual_seed(mix_seed(seed, chunk))
            chunks.append(self.model.latent(CHUNK, generator))
        return torch.cat(chunks)[:num]

    def interpolate(self, num: int, steps: int, seed: int = 0, cond: Batch | None = None) -> Tensor:
        """`num` walks of `steps` images between pairs of latents, [num * steps, C, H, W], along great circles.

        The condition stays the same along a walk.
        """
        ends = self._some(self.latents(2 * num, seed))
        t = torch.linspace(0, 1, steps)
        walks = [slerp(ends[2 * i], ends[2 * i + 1], t) for i in range(num)]
        conditions = self.conditions_for(num, seed) if cond is None else turns(cond, num)
        return self.decode(
            torch.cat(walks), {key: value.repeat_interleave(steps, 0) for key, value in conditions.items()}
        )

    def traverse(self, steps: int, seed: int = 0, cond: Batch | None = None) -> Tensor:
        """The model's traversal from the seed's first latent, [rows * steps, C, H, W]; row by row.

        Under the first of the conditions.
        """
        rows = self.model.traversal(self._some(self.latents(1, seed))[0], steps).flatten(0, 1)
        first = self.conditions_for(1, seed) if cond is None else turns(cond, 1)
        return self.decode(rows, turns(first, len(rows)))

    def _some(self, latents: Tensor) -> Tensor:
        if not latents.numel():
            raise ValueError(f"{self.model.name} has no latents to walk through; its images follow from the condition")
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor, cond: Batch) -> Tensor:
        """Images [num, C, H, W] in [-1, 1] of given latents and conditions [num, ...], on the CPU."""
        return torch.cat(list(self.decode_chunks(latents, cond)))

    @torch.no_grad()
    def decode_chunks(self, latents: Tensor, cond: Batch) -> Iterator[Tensor]:
        """The images of `decode`, some at a time: of a million, memory need not hold all."""
        for start in range(0, len(latents), CHUNK):
            part = {key: value[start : start + CHUNK] for key, value in cond.items()}
            yield self._decode_chunk(latents[start : start + CHUNK], part)

    def _decode_chunk(self, latent: Tensor, cond: Batch) -> Tensor:
        num = len(latent)
        latent = _padded(latent).to(self.device)
        cond = {key: _padded(value).to(self.device) for key, value in cond.items()}
        modes = [net.training for net in self.nets]
        for net in self.nets:
            net.eval()
        # On a GPU some convolutions add in any order, or in 10 bits: the same seed gives the same bytes.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            images = self.model.generate(latent, cond, self.progress)[:num].float().cpu()
        for net, mode in zip(self.nets, modes, strict=True):
            net.train(mode)
        return images


def save(
    folder: Path,
    model: GenerativeModel,
    progress: Progress,
    info: dict[str, Any] | None = None,
    conditions: Batch | None = None,
) -> str:
    """Writes the sampling folder in one move and returns the sha256 of the weights.

    model: with averaged networks in the place of the live ones. info: anything of JSON about the training.
    conditions: what `sample` conditions on when it is told nothing else; they lie beside the weights.
    """
    tensors = {f"{CONDITIONS}.{key}": value.cpu().contiguous() for key, value in (conditions or {}).items()}
    for net in (*model.ema_nets, *model.proof_nets):
        for name, tensor in getattr(model, net).state_dict().items():
            tensors[f"{net}.{name}"] = tensor.detach().cpu().contiguous()

    def write(temporary: Path) -> None:
        check_room(temporary.parent, sum(tensor.nbytes for tensor in tensors.values()), "the weights")
        weights = temporary / "model.safetensors"
        safetensors.torch.save_file(tensors, weights)
        config = {
            "model": model.name,
            "settings": model.config.model_dump(mode="json"),
            "data": model.data.to_json(),
            "progress": dataclasses.asdict(progress),
            "sha256": sha256_file(weights),
            "info": info or {},
        }
        write_json(temporary / "config.json", config)
        (temporary / "README.md").write_text(model_card(config), encoding="utf-8")

    replace_folder(folder, write)
    return read_config(folder)["sha256"]


def load(folder: Path | str, device: torch.device | str = "cpu") -> Sampler:
    """Reads a sampling folder; ExportError if it is not whole. Executes nothing from it."""
    folder = Path(folder)
    config = read_config(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ExportError(f"{weights} is missing")
    if sha256_file(weights) != config["sha256"]:
        raise ExportError(f"{weights}: sha256 differs from config.json; the file was altered or is damaged")
    cls = model_class(config["model"])
    model = cls(cls.Config(**config["settings"]), DataSpec.from_json(config["data"]))
    try:
        tensors = safetensors.torch.load_file(weights)
    except safetensors.SafetensorError as error:
        raise ExportError(f"{weights} is no safetensors file: {error}") from None
    for name in list(model._modules):
        if own := _below(name, tensors):
            getattr(model, name).load_state_dict(own)
        else:
            delattr(model, name)
    model.requires_grad_(False).eval().place(device)
    return Sampler(model, _progress(config["progress"]), config, device, _below(CONDITIONS, tensors))


def read_config(folder: Path | str) -> dict[str, Any]:
    """config.json of a sampling folder."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} is no sampling folder: {error}") from None
    missing = {"model", "settings", "data", "progress", "sha256"} - set(config if isinstance(config, dict) else ())
    if missing:
        raise ExportError(f"{folder} is no sampling folder: config.json lacks {', '.join(sorted(missing))}")
    return config


def model_card(config: dict[str, Any]) -> str:
    """A short card in Markdown: what it is, what it was trained on, how to sample it."""
    data, progress = config["data"], config["progress"]
    size = progress["stage"]["image_size"]
    info = "\n".join(f"- {key}: {value}" for key, value in config["info"].items())
    settings = "\n".join(f"- {key}: {value}" for key, value in config["settings"].items())
    return f"""# {config["model"]} on {data["name"]}

Images of {size}x{size} pixels, after {progress["num_images"]:,} training images (stage "{progress["stage"]["name"]}").
Data: {data["num_train"]:,} training and {data["num_test"]:,} held-out images, digest {data["digest"][:16]}.
Weights: sha256 {config["sha256"]}.

    import genmodels
    images = genmodels.load("this/folder").sample(16, seed=0)  # [16, {data["channels"]}, {size}, {size}] in [-1, 1]

## Training
{info}

## Settings
{settings}
"""


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points at t [T] on the great circle from start to end, each of shape [...]; [T, ...] (Shoemake 1985)."""
    cosine = torch.nn.functional.cosine_similarity(start.flatten(), end.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine).clamp(min=1e-6)
    t = t.view(-1, *[1] * start.dim())
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def turns(cond: Batch, num: int, start: int = 0) -> Batch:
    """Conditions [K, ...] -> [num, ...], from number `start` on and round again."""
    return {key: value[(torch.arange(num) + start % len(value)) % len(value)] for key, value in cond.items()}


def _below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _padded(tensor: Tensor) -> Tensor:
    """Filled up to CHUNK rows by repeating the last, so that every chunk is computed at one batch size."""
    missing = CHUNK - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def _progress(values: dict[str, Any]) -> Progress:
    stage = dict(values["stage"])
    stage["phases"] = tuple(stage["phases"]) if stage["phases"] else None
    return Progress(values["step"], values["num_images"], Stage(**stage), values["fraction"])
