"""Feature bank: the newest rows of every class, identical on every rank if every rank enqueues the same rows."""

# P rows, G groups, C classes incl. background, M slots a class, D features, R filled slots

from __future__ import annotations

import torch
from torch import Tensor, nn


def rank_in_group(groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """How many rows of the same group come before each row.

    Args:
        groups: Group of each row (P,), 0 to num_groups - 1.
        num_groups: Groups G.

    Returns:
        Ranks (P,) from 0 in order of the rows, and rows of each group (G,).
    """
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups, minlength=num_groups)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(groups)
    ranks[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return ranks, counts


@torch.no_grad()
def push(slots: Tensor, filled: Tensor, pointer: Tensor, rows: Tensor, classes: Tensor) -> None:
    """Write rows (P,...) into the ring buffers slots (C,M,...) of their classes (P,), in order; the oldest leave.

    Changes slots, filled (C,) and pointer (C,) in place.
    """
    num_classes, size = slots.shape[:2]
    ranks, counts = rank_in_group(classes, num_classes)
    # Of more rows than slots only the last survive; writing a slot once keeps the result defined.
    kept = ranks >= (counts - size)[classes]
    cycle = max(size, 1)  # a bank of size 0 keeps no row, and must not divide by it
    slot = (pointer[classes] + ranks) % cycle
    slots[classes[kept], slot[kept]] = rows[kept].to(slots.dtype)
    pointer.copy_((pointer + counts) % cycle)
    filled.copy_((filled + counts).clamp(max=size))


class MemoryBank(nn.Module):
    """First in, first out, `size` rows a class. All of its state is in buffers.

    Args:
        num_classes: Classes C, background included.
        size: Slots a class, M; 0 makes a bank that stays empty.
        dim: Features D.
    """

    features: Tensor
    filled: Tensor
    pointer: Tensor

    def __init__(self, num_classes: int, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_classes, size, dim))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.long))

    def enqueue(self, features: Tensor, classes: Tensor) -> None:
        """Add features (P,D) of classes (P,), in the order of the rows, without their gradients."""
        push(self.features, self.filled, self.pointer, features, classes)

    @torch.no_grad()
    def replace(self, features: Tensor, filled: Tensor) -> None:
        """Take features (C,M,D) in place of all slots; the first filled (C,) of each class count."""
        self.features.copy_(features)
        self.filled.copy_(filled)
        self.pointer.copy_(filled % max(self.features.shape[1], 1))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Filled slots only: features (R,D) and their classes (R,), by class and slot. Copies, not views."""
        slot = torch.arange(self.features.shape[1], device=self.filled.device)
        is_filled_CM = slot < self.filled[:, None]
        return self.features[is_filled_CM], is_filled_CM.nonzero()[:, 0]
