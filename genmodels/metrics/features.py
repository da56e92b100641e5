"""The pipeline's own feature network, and the distances between sets of its features.

The Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018) are known over Inception's
features. Here a small classifier of the data set itself supplies them, so nothing is downloaded and the scores are
about this data; they say nothing beside scores over another network, which is why `Extractor.sha256` goes with them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.metrics.supplied import SuppliedNetwork

Task = Literal["classes", "rotation"]
NUM_FEATURES = 128
RESIZE_FILTER = "bilinear, antialiased"
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
CHUNK = 512  # images, or rows of distances, at once
NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance; Binkowski et al. 2018


class Extractor(nn.Module):
    """A classifier of four convolutions; its features are the last ones, averaged over the places.

    `task` says what it was trained for: the data's classes, or without labels the image's rotation by 0, 90, 180 or
    270 degrees (RotNet, Gidaris et al. 2018).
    """

    num_features = NUM_FEATURES

    def __init__(self, channels: int, num_classes: int, task: Task = "classes", input_size: int = 32):
        super().__init__()
        self.channels, self.num_classes, self.task, self.input_size = channels, num_classes, task, input_size
        self.stages = nn.Sequential(_stage(channels, 32, 2), _stage(32, 64, 2), _stage(64, 128, 2), _stage(128, 128, 1))
        self.classify = nn.Linear(NUM_FEATURES, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.1 to 1.6 times as fast on a CPU

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, 128] of images [N, C, S, S] in [-1, 1], S >= 4, resized with the protocol's filter."""
        if images.shape[1] != self.channels:
            raise ValueError(f"the extractor takes images of {self.channels} channels, got {list(images.shape)}")
        images = resized(images, self.input_size)
        return self.stages(images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of the task's classes."""
        return self.classify(self(images))

    @property
    def sha256(self) -> str:
        """Hash over the bytes of the weights and statistics, in the order of their names: the network's identity."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.state_dict().items()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def resize_filter(self) -> str:
        """How images reach the network, for the protocol."""
        return f"{RESIZE_FILTER}, to {self.input_size} px"

    def config(self) -> dict[str, Any]:
        """The arguments that build this network."""
        return {key: getattr(self, key) for key in ("channels", "num_classes", "task", "input_size")}


FeatureNetwork = Extractor | SuppliedNetwork


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


def resized(images: Tensor, size: int) -> Tensor:
    """Images [N, C, S, S] -> [N, C, size, size], with the protocol's filter."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def train_extractor(
    images: Tensor,
    labels: Tensor | None = None,
    num_images: int = 60_000,
    seed: int = 0,
    input_size: int = 32,
    num_classes: int | None = None,
) -> Extractor:
    """A network trained on images [N, C, S, S] in [-1, 1] with labels int64 [N], or on rotations when there are none.

    Labels may also be float [N, A], A attributes of 0 and 1 that are told apart one by one (logits above 0: 1).
    num_classes: where labels of these images may not show all of them.

    Shows `num_images` images in all, in epochs; Adam under a one-cycle rate (Smith & Topin 2017). On the images'
    device; a function of the arguments, of the kind of device and of its number of threads; the global random state
    stays as it was. Returned frozen, in eval mode.
    """
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"expected a label an image, got {len(labels)} labels for {len(images)} images")
    generator = torch.Generator().manual_seed(seed)
    attributes = labels is not None and labels.is_floating_point()
    loss = F.binary_cross_entropy_with_logits if attributes else F.cross_entropy
    num_classes = num_classes or (4 if labels is None else labels.shape[1] if attributes else int(labels.max()) + 1)
    if num_classes < 2 and not attributes:
        raise ValueError("a network that tells classes apart needs two of them at least")
    extractor = _initialized(
        images.shape[1], num_classes, "rotation" if labels is None else "classes", input_size, seed
    )
    extractor.to(images.device)
    optimizer = torch.optim.Adam(extractor.parameters(), lr=LEARNING_RATE, fused=True)
    num_steps = max(1, num_images // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps + 1)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        while len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        rows, order = order[:BATCH_SIZE].to(images.device), order[BATCH_SIZE:]
        batch, targets = _task_batch(
            images[rows], None if labels is None else labels.to(images.device)[rows], generator
        )
        optimizer.zero_grad()
        loss(extractor.logits(batch), targets).backward()
        optimizer.step()
        schedule.step()
    return extractor.eval().requires_grad_(False)


def _initialized(channels: int, num_classes: int, task: Task, input_size: int, seed: int) -> Extractor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA's generators too
        return Extractor(channels, num_classes, task, input_size)


def _task_batch(images: Tensor, labels: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if labels is not None:
        return images, labels
    turns = torch.randint(4, (len(images),), generator=generator).to(images.device)
    return rotate(images, turns), turns


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Images [N, C, S, S], each turned counter-clockwise by its number of quarter turns, int64 [N] in 0 .. 3."""
    turned = torch.stack([images.rot90(k, dims=(2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(images), device=images.device)]


@torch.no_grad()
def extract(extractor: FeatureNetwork, images: Tensor) -> Tensor:
    """Features [N, F] of images [N, C, S, S], computed in chunks by the network in eval mode."""
    extractor.eval()
    return torch.cat([extractor(chunk) for chunk in images.split(CHUNK)])


@torch.no_grad()
def accuracy(extractor: Extractor, images: Tensor, labels: Tensor | None = None) -> float:
    """Share of images that the network classifies rightly; a rotation network is asked for all four turns of each."""
    extractor.eval()
    if extractor.task == "classes":
        if labels is None:
            raise ValueError("accuracy of an extractor of classes needs labels")
        pairs = list(zip(images.split(CHUNK), labels.to(images.device).split(CHUNK), strict=True))
    else:
        pairs = [
            (chunk.rot90(k, dims=(2, 3)), torch.full((len(chunk),), k, device=images.device))
            for chunk in images.split(CHUNK)
            for k in range(4)
        ]
    right = sum(int((extractor.logits(chunk).argmax(dim=1) == targets).sum()) for chunk, targets in pairs)
    return right / sum(len(targets) for _, targets in pairs)


def save_extractor(extractor: Extractor, path: Path | str) -> None:
    """Write weights and configuration to one safetensors file; equal networks give equal bytes."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in extractor.state_dict().items()}
    # One key: safetensors writes several in no fixed order.
    save_file(weights, path, metadata={"config": json.dumps(extractor.config(), sort_keys=True)})


def load_extractor(path: Path | str) -> Extractor:
    """Inverse of `save_extractor`: the network on the CPU, frozen, in eval mode. ValueError for any other file."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError(f"{path} is not a feature network written by save_extractor: its header has no config")
    config = json.loads(metadata["config"])
    extractor = _initialized(**config, seed=0)
    extractor.load_state_dict(load_file(path))
    return extractor.eval().requires_grad_(False)


class _Features(nn.Module):
    """What torchmetrics takes for a feature network when the features are already there."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features [N, F] and [M, F] (FID, Heusel et al. 2017).

    In float64. Its bias grows as the sets shrink, roughly as 1 / N: compare only scores of equal N.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]), sync_on_compute=False).to(real.device)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, fake: Tensor, seed: int = 0) -> float:
    """Squared MMD under the kernel (x.y / F + 1)^3 between features [N, F] and [M, F] (KID, Binkowski et al. 2018).

    Unbiased, so slightly negative values occur; the mean over 100 random subsets of 1,000, of one subset of all
    when N is smaller. In float64.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    subset_size = min(SUBSET_SIZE, len(real), len(fake))
    num_subsets = 1 if subset_size == len(real) == len(fake) else NUM_SUBSETS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        torch.default_generator.manual_seed(seed)  # torchmetrics draws its subsets from the global generator
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]),
            subsets=num_subsets,
            subset_size=subset_size,
            sync_on_compute=False,  # one rank alone judges; the others train on
        ).to(real.device)
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        return float(metric.compute()[0])


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features [N, F] and [M, F] (Kynkaanniemi et al. 2019), both in [0, 1].

    A set's manifold is the union of balls around its points that reach to their k-th nearest neighbour. Precision is
    the share of fakes in the reals' manifold (quality), recall the share of reals in the fakes' (coverage).
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision and recall with k = {k} need more than {k} images a set")
    real, fake = real.double(), fake.double()
    return _share_inside(real, fake, k), _share_inside(fake, real, k)


def _share_inside(support: Tensor, points: Tensor, k: int) -> float:
    # The nearest of k + 1 neighbours is the point itself.
    radii = torch.cat([torch.cdist(chunk, support).kthvalue(k + 1, dim=1).values for chunk in support.split(CHUNK)])
    inside = [(torch.cdist(chunk, support) <= radii).any(dim=1) for chunk in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())
