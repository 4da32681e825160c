"""What ranks exchange in a step, so that any number of workers computes the same numbers.

Every call is the identity in one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from brnf.losses import Ratio


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over ranks; no gradient flows through it."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate tensors (P, ...) with any P over ranks, in rank order."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(int(count) for count in counts))
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])


def from_first_rank(value: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank."""
    if world_size() > 1:
        value = value.contiguous()
        dist.broadcast(value, src=0)
    return value


def global_means(ratios: dict[str, Ratio]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turn sums and counts of this rank into means over the global batch.

    Returns:
        The losses to differentiate, scaled so that the mean over ranks of their gradients (what DDP takes) is the
        gradient of the global mean; and the global means themselves, detached, equal on every rank.
    """
    local = torch.stack([part.detach().float() for ratio in ratios.values() for part in ratio])
    totals, counts = sum_over_ranks(local).view(-1, 2).unbind(1)
    counts = counts.clamp_min(1e-12)
    losses = {
        name: ratio.total * (world_size() / count) for (name, ratio), count in zip(ratios.items(), counts, strict=True)
    }
    return losses, dict(zip(ratios, totals / counts, strict=True))
