"""How sure the scores of an image are of its labels.

K classes, H W pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

UNCERTAIN_MARGIN = 0.1


class Certainty(NamedTuple):
    """Figures of one image."""

    mean_top_score: float
    """Mean over pixels of the winning score, in [0, 1]."""
    uncertain_share: float
    """Share of pixels whose two best scores differ by less than UNCERTAIN_MARGIN."""
    entropy: float
    """Mean over pixels of the entropy of the scores as shares, of its most, in [0, 1]: 0 sure, 1 even."""


def certainty(maps: Tensor) -> Certainty:
    """Measure scores (K, H, W) in [0, 1]; a single class is sure."""
    classes = len(maps)
    best = maps.topk(min(2, classes), dim=0).values
    if classes == 1:
        return Certainty(float(best.mean()), 0.0, 0.0)
    shares = maps / maps.sum(dim=0).clamp_min(torch.finfo(maps.dtype).tiny)
    entropy = torch.special.entr(shares).sum(dim=0).mean() / math.log(classes)
    uncertain = (best[0] - best[1] < UNCERTAIN_MARGIN).float().mean()
    return Certainty(float(best[0].mean()), float(uncertain), float(entropy))
