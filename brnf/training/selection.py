"""Which pixels train the flows: labels from maps, confidence by rank, draws keyed by image.

Draws depend on the image's key alone, so they do not change with the number of workers or after a restart.

N images, C classes, H W cells, P = N*H*W pixels, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brnf.models.memory_bank import rank_in_group


class Draws(NamedTuple):
    """Random numbers of a batch, one row a pixel."""

    subset: Tensor
    """(P,) in [0, 1): decides which pixels of an image are kept."""
    held_out: Tensor
    """(P,) in [0, 1): decides which confident pixels are kept from training."""
    noise: Tensor
    """(P, D) standard normal."""


class CellLabels(NamedTuple):
    """The class that maps give to each cell."""

    labels: Tensor
    """(P,) long."""
    scores: Tensor
    """(P,) value of the winning map."""
    margins: Tensor
    """(P,) lead over the runner-up."""


def draw(keys: Tensor, height: int, width: int, dim: int, device: torch.device) -> Draws:
    """Draw for a batch of images.

    Args:
        keys: (N,) int64, one per image and epoch.
        height: H.
        width: W.
        dim: D.
        device: Where to draw; the numbers differ between kinds of device.
    """
    generator = torch.Generator(device)
    rows = []
    for key in keys.tolist():
        generator.manual_seed(key)
        rows.append(torch.randn(height * width, dim + 2, generator=generator, device=device))
    values = torch.cat(rows)
    uniform = torch.special.ndtr(values[:, :2])
    return Draws(uniform[:, 0], uniform[:, 1], values[:, 2:])


def label_cells(maps: Tensor, allowed: Tensor) -> CellLabels:
    """Give each cell the allowed class with the highest map (N, C, H, W)."""
    best, index = maps.masked_fill(~allowed[:, :, None, None], -1.0).topk(2, dim=1)
    return CellLabels(index[:, 0].flatten(), best[:, 0].flatten(), (best[:, 0] - best[:, 1].clamp_min(0)).flatten())


def rank_within(groups: Tensor, order_by: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Rank rows within their group, smallest `order_by` first, ties by position.

    Returns:
        Rank (P,) from 0, and the size (P,) of each row's group.
    """
    order = torch.sort(order_by, stable=True).indices
    in_order, sizes = rank_in_group(groups[order], num_groups)
    ranks = torch.empty_like(groups)
    ranks[order] = in_order
    return ranks, sizes[groups]


def confident(
    cell: CellLabels,
    image: Tensor,
    eligible: Tensor,
    share: float,
    num_images: int,
    num_classes: int,
    margin: float = 0.0,
) -> Tensor:
    """The best `share` of every class's cells in every image, where they lead by `margin`.

    Args:
        cell: Labels and scores of all cells.
        image: (P,) index of the image.
        eligible: (P,) bool, cells that count at all.
        share: rho.
        num_images: N.
        num_classes: C.
        margin: Least lead over the runner-up.

    Returns:
        (P,) bool.
    """
    nobody = num_images * num_classes
    groups = torch.where(eligible, image * num_classes + cell.labels, nobody)
    ranks, sizes = rank_within(groups, -cell.scores, nobody + 1)
    return eligible & (ranks < (sizes * share).ceil()) & (cell.margins >= margin)


def subset(image: Tensor, eligible: Tensor, draws: Tensor, most: int, num_images: int) -> Tensor:
    """At most `most` eligible pixels of every image, by smallest draw (P,) -> bool (P,)."""
    groups = torch.where(eligible, image, num_images)
    ranks, _ = rank_within(groups, draws, num_images + 1)
    return eligible & (ranks < most)
