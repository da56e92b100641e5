"""The few collectives that training needs; each is nothing at all on a single process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over ranks: one flat all_reduce (as StyleGAN3 does), no DDP."""
    _, world_size = world()
    if world_size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size).split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Gives every rank the tensors of rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def assert_equal(tensors: Sequence[Tensor]) -> None:
    """AssertionError unless every rank holds the same bits."""
    if world()[1] == 1:
        return
    mine = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    equal = torch.tensor(torch.equal(mine, theirs), device=mine.device, dtype=torch.float32)
    dist.all_reduce(equal, dist.ReduceOp.MIN)
    assert equal.item() == 1, "the ranks' weights differ: training is not reproducible across ranks"


def gather(value: Any) -> list[Any]:
    """Every rank's value on rank 0, in the order of ranks; an empty list elsewhere."""
    rank, world_size = world()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.gather_object(value, values if rank == 0 else None)
    return values if rank == 0 else []
