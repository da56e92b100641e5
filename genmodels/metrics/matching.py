"""Whether images show what their captions say, judged by a network trained on real pairs only.

R-precision (Xu et al. 2018, "AttnGAN"): how often an image is nearer to its own caption than to 99 others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmodels.data.captions import PADDING, alike
from genmodels.losses import contrastive_loss
from genmodels.metrics.features import CHUNK, Extractor

EMBEDDING, TEMPERATURE = 64, 0.1
BATCH_SIZE, LEARNING_RATE = 64, 3e-3
NUM_WRONG = 99  # captions beside the right one


class Matcher(nn.Module):
    """Images and captions in one space: the feature network's convolutions, and a bag of words."""

    def __init__(self, channels: int, num_tokens: int):
        super().__init__()
        self.image = Extractor(channels, EMBEDDING)
        self.text = nn.EmbeddingBag(num_tokens, EMBEDDING, mode="mean", padding_idx=PADDING)

    def similarity(self, images: Tensor, captions: Tensor) -> Tensor:
        """Cosines [N, M] of images [N, C, S, S] in [-1, 1] and captions int64 [M, L]."""
        first = torch.cat([self.image.logits(chunk) for chunk in images.split(CHUNK)])
        second = self.text(captions)
        return nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T


def train_matcher(
    images: Tensor, captions: Tensor, num_tokens: int, num_images: int = 20_000, seed: int = 1
) -> Matcher:
    """A matcher trained on images [N, C, S, S] in [-1, 1] and captions int64 [N, K, L], tokens below num_tokens.

    Shows `num_images` images in all, each with one of its captions; on the images' device, and a function of the
    arguments alone there. Returned frozen, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        matcher = Matcher(images.shape[1], num_tokens).to(images.device)
    optimizer = torch.optim.Adam(matcher.parameters(), lr=LEARNING_RATE, fused=True)
    num_steps = max(1, num_images // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps + 1)
    for _ in range(num_steps):
        rows = torch.randperm(len(images), generator=generator)[:BATCH_SIZE]
        drawn = torch.randint(captions.shape[1], (len(rows),), generator=generator)
        tokens = captions[rows, drawn]
        optimizer.zero_grad()
        embedded = matcher.image.logits(images[rows]), matcher.text(tokens)
        contrastive_loss(*embedded, alike(captions[rows]), TEMPERATURE).backward()
        optimizer.step()
        schedule.step()
    return matcher.eval().requires_grad_(False)


@torch.no_grad()
def r_precision(matcher: Matcher, images: Tensor, captions: Tensor, seed: int = 0) -> tuple[float, float]:
    """(share of images nearer to their own caption than to each of 99 wrong ones, chance).

    images [N, C, S, S] in [-1, 1]; captions int64 [N, L], whose equals are never among the wrong ones. Where N is
    too small for 99, all others are the wrong ones.
    """
    scores = matcher.similarity(images, captions)
    generator = torch.Generator().manual_seed(seed)
    number = captions.unique(dim=0, return_inverse=True)[1]  # of each caption; compared word by word they took N^2 L
    equal = (number[:, None] == number).to(scores.device)
    order = torch.rand(scores.shape, generator=generator).to(scores.device).masked_fill(equal, -1)
    num_wrong = min(NUM_WRONG, int((order >= 0).sum(1).min()))
    if num_wrong == 0:
        raise ValueError("R-precision needs at least two different captions")
    wrong = scores.gather(1, order.topk(num_wrong, dim=1).indices)
    return (scores.diagonal() > wrong.amax(1)).float().mean().item(), 1 / (1 + num_wrong)
