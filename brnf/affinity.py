"""What a boundary network learns from: pairs of near cells, of one class or of two, and the straight path between them.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN), CVPR 2019,
section 4; losses and what lies on a path re-derived from its public code (jiwoon-ahn/irn). Departures: pairs that
begin near the border take part too, and logarithms are those of the logits, without the 1e-5 that keeps them finite.

N images, C classes with background at 0, H W cells.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.losses import Ratio
from brnf.models.flow import full_precision

UNSURE = -1
"""Label of a cell that takes part in no pair."""
MAJORITY = 0.5
"""Share of a cell that has to be of one class."""
LOSS_WEIGHTS = {
    "affinity_background": 1 / 4,
    "affinity_foreground": 1 / 4,
    "affinity_negative": 1 / 2,
    "displacement_foreground": 1 / 2,
    "displacement_background": 1 / 2,
}
"""Of the means that `pair_losses` gives, in its order (IRN)."""


class Path(NamedTuple):
    """A straight way from a cell to another, as displacements (row, column)."""

    end: tuple[int, int]
    cells: tuple[tuple[int, int], ...]
    """On the way: nearer than one cell to the line, within its bounding box; both ends among them."""


@functools.cache
def straight_paths(radius: int) -> tuple[Path, ...]:
    """Paths to all cells nearer than `radius` in one half plane, so that each pair of cells occurs once."""
    ends = [
        (row, column)
        for row in range(radius)
        for column in range(-radius + 1, radius)
        if row**2 + column**2 < radius**2 and (row > 0 or column > 0)
    ]
    return tuple(Path(end, tuple(_cells(*end))) for end in ends)


def _cells(row: int, column: int) -> list[tuple[int, int]]:
    box = [(y, x) for y in range(row + 1) for x in range(min(0, column), max(0, column) + 1)]
    return [(y, x) for y, x in box if (row * x - column * y) ** 2 < row**2 + column**2]


def sure_labels(shares: Tensor) -> Tensor:
    """Class of each cell that is mostly of one class.

    Args:
        shares: (N, C, H, W) in [0, 1]; all zero where nothing is known.

    Returns:
        int64 (N, H, W), UNSURE elsewhere.
    """
    share_NHW, label_NHW = shares.max(dim=1)
    return label_NHW.where(share_NHW > MAJORITY, UNSURE)


def pair_losses(boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> dict[str, Ratio]:
    """Losses of all pairs of sure cells nearer than `radius`, as sums and counts, by the names of LOSS_WEIGHTS.

    The affinity of a pair is one minus the strongest boundary on its path: it should be 1 within a class (background
    and foreground apart, since there is more background) and 0 between classes. Displacements should agree with each
    other: within a class's surroundings on where its centre is, on the background on none.

    Args:
        boundary: (N, H, W) logits.
        displacement: (N, 2, H, W), from the cell to its object's centre, rows and columns, in cells.
        labels: int64 (N, H, W), UNSURE for cells that take part in no pair.
        radius: In cells, 2 or more.
    """
    field, reach = full_precision(displacement), radius - 1
    logits, fields = _Around(full_precision(boundary), reach, 0), _Around(field, reach, 0)
    others = _Around(labels, reach, UNSURE)
    totals, counts = field.new_zeros(len(LOSS_WEIGHTS)), labels.new_zeros(len(LOSS_WEIGHTS))
    for path in straight_paths(radius):
        other, logit = others.at(path.end), logits.strongest(path)
        sure, same = (labels >= 0) & (other >= 0), labels == other
        background, foreground = sure & same & (labels == 0), sure & same & (labels > 0)
        step_N2HW = field.new_tensor(path.end).view(2, 1, 1) * foreground[:, None]
        apart = (field - fields.at(path.end) - step_N2HW).abs().mean(dim=1)
        positive, negative = F.softplus(logit), F.softplus(-logit)  # -log of one minus the boundary, of the boundary
        pairs = (background, foreground, sure & ~same, foreground, background)
        losses = (positive, positive, negative, apart, apart)
        totals = totals + torch.stack([(loss * of).sum() for loss, of in zip(losses, pairs, strict=True)])
        counts = counts + torch.stack([of.sum() for of in pairs])
    ratios = map(Ratio, totals, counts.to(totals.dtype))
    return dict(zip(LOSS_WEIGHTS, ratios, strict=True))


class _Around:
    """Maps (N, ..., H, W) seen from each cell towards the cells around it, in the half plane of `straight_paths`.

    Args:
        maps: The maps.
        reach: Most cells to look at in any direction.
        outside: What there is beyond the border.
    """

    def __init__(self, maps: Tensor, reach: int, outside: float) -> None:
        self.height, self.width, self.reach = maps.shape[-2], maps.shape[-1], reach
        self.padded = F.pad(maps, (reach, reach, 0, reach), value=outside)

    def at(self, cell: tuple[int, int]) -> Tensor:
        """What each cell sees at this displacement."""
        return self._window(self.padded, cell)

    def _window(self, padded: Tensor, cell: tuple[int, int]) -> Tensor:
        row, column = cell[0], cell[1] + self.reach
        return padded[..., row : row + self.height, column : column + self.width]

    def strongest(self, path: Path) -> Tensor:
        """The largest value on each cell's path; the gradient goes to the cell that holds it.

        Only where it lies is kept for the backward pass, not every maximum on the way: a path has up to 22 cells.
        """
        padded, stride = self.padded.detach(), self.padded.shape[-1]
        best, offset = self._window(padded, (0, 0)), torch.zeros_like(self.at((0, 0)), dtype=torch.long)
        for row, column in path.cells:
            value = self._window(padded, (row, column))
            offset = torch.where(value > best, row * stride + column, offset)
            best = torch.maximum(best, value)
        place = torch.arange(padded[0].numel(), device=padded.device).view(padded.shape[1:])
        index = self._window(place, (0, 0)) + offset
        return self.padded.flatten(1).gather(1, index.flatten(1)).view_as(index)
