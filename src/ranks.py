"""Several processes, one run: each rank holds a contiguous part of the samples, and what samples share is shared.

Rewards, advantages, neuron scores and gradients are those of all samples together, and every draw goes by a sample's
place among them: one, two or eight ranks give the same run, up to the rounding of sums.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


def process_rank() -> int:
    """Of this process among all, before there is a trainer to ask: what the environment says, else 0."""
    return getattr(rank_zero_only, "rank", 0)


class Ranks:
    """This process's place among all. A single process gathers and adds up nothing."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    def part(self, n: int) -> slice:
        """This rank's share of n rows; the first ranks have one more where n is no multiple of their number."""
        each, left = divmod(n, self.world)
        start = self.rank * each + min(self.rank, left)
        return slice(start, start + each + (self.rank < left))

    def own(self, rows: Shaped[Tensor, " n"], n: int) -> Shaped[Tensor, " n"]:
        """Which of these rows (of n in all) are this rank's, as a mask."""
        part = self.part(n)
        return (rows >= part.start) & (rows < part.stop)

    def gather(self, rows: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The rows (first axis) of all ranks, in order."""
        return rows if self.world == 1 else torch.cat(gather_all_tensors(rows.contiguous()))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one type by their sums over ranks, all in one all-reduce."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that any rank has, in the same order on all."""
        if self.world == 1:
            return list(names)
        found: list[list[str]] = [[] for _ in range(self.world)]
        dist.all_gather_object(found, list(names))
        return list(dict.fromkeys(name for each in found for name in each))

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on every rank."""
        unset = torch.tensor(float(not flag), device=device)
        self.add_up([unset])
        return unset.item() == 0
