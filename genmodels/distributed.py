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
    """AssertionError unless every rank holds the same bits, by their sums as integers: one pass, two numbers sent."""
    if world()[1] == 1:
        return
    mine = torch.stack([tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors])
    weights = torch.arange(1, len(mine) + 1, device=mine.device)  # tensors that are swapped differ too
    least = torch.stack([mine.sum(), (mine * weights).sum()])
    most = least.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    assert torch.equal(least, most), "the ranks' weights differ: training is not reproducible across ranks"


def from_first(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=_hosts())
    return values[0]


class Vote:
    """The greatest of all ranks' wishes, learnt by every rank at the same step, one step late.

    It travels between hosts while the step runs, so that no rank waits for it, nor for its device.
    """

    def __init__(self) -> None:
        self._group = _hosts() if world()[1] > 1 else None
        self._wish = torch.zeros(1, dtype=torch.int64)
        self._sent: Any = None

    def cast(self, wish: int) -> int:
        """Sends this step's wish and returns what came of the one before; alone, the wish itself."""
        if self._group is None:
            return wish
        outcome = self.close()
        self._wish.fill_(wish)
        self._sent = dist.all_reduce(self._wish, dist.ReduceOp.MAX, self._group, async_op=True)
        return outcome

    def close(self) -> int:
        """Waits for the last vote, as all ranks must before they part; 0 where there was none."""
        if self._sent is None:
            return 0
        self._sent.wait()
        self._sent = None
        return int(self._wish.item())


_groups: dict[Any, Any] = {}


def _hosts() -> Any:
    """A group of all ranks over gloo, which needs no device; made once a process group."""
    everybody = dist.group.WORLD
    if everybody not in _groups:
        _groups.clear()
        _groups[everybody] = dist.new_group(backend="gloo")
    return _groups[everybody]


def gather(value: Any) -> list[Any]:
    """Every rank's value on rank 0, in the order of ranks; an empty list elsewhere."""
    rank, world_size = world()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.gather_object(value, values if rank == 0 else None, group=_hosts())
    return values if rank == 0 else []
