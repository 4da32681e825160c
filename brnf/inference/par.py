"""Pixel-adaptive refinement: scores averaged over neighbours that look like the pixel, on a GPU or CPU, in batches.

Ru, Zhan, Yu, Du 2022, "Learning Affinity from Attention" (AFA), section 3.4; formulas re-derived. Neighbours are the
eight around a pixel at each of six distances; each weighs by likeness of colour and, a little, by nearness.

N images, K classes (background first), B neighbours, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.config import ParConfig

DISTANCES = (1, 2, 4, 8, 12, 24)
"""Pixels to the neighbours (AFA)."""
WIDTH = 0.3
"""Of the kernels, in standard deviations of what is compared (AFA)."""
PLACE_WEIGHT = 0.01
"""Of nearness against likeness (AFA)."""
AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
EPSILON = 1e-8


def refine(images: Tensor, scores: Tensor, config: ParConfig) -> Tensor:
    """Average scores over neighbours, `config.iterations` times.

    Args:
        images: (N, 3, H, W) RGB, uint8 or float, on the scores' device.
        scores: (N, K, H, W) in [0, 1].
        config: Iterations, sharpness.

    Returns:
        (N, K, H, W) float32, summing to one over the classes.
    """
    weight_NBHW = neighbour_weights(images)
    scores_NKHW = (config.sharpness * scores.float()).softmax(dim=1)
    for _ in range(config.iterations):
        scores_NKHW = torch.stack(
            [(near_NBHW * weight_NBHW).sum(dim=1) for near_NBHW in map(neighbours, scores_NKHW.unbind(1))], dim=1
        )
    return scores_NKHW


def neighbour_weights(images: Tensor) -> Tensor:
    """What each neighbour counts for: (N, B, H, W), summing to one over the neighbours.

    Args:
        images: (N, 3, H, W) RGB.
    """
    unlike = [_unlike(neighbours(channel_NHW), channel_NHW) for channel_NHW in images.float().unbind(1)]
    likeness_NBHW = torch.stack(unlike).mean(dim=0).softmax(dim=1)
    far_B = torch.tensor([distance * (row**2 + column**2) ** 0.5 for distance in DISTANCES for row, column in AROUND])
    nearness_B = (-((far_B / (far_B.std() + EPSILON) / WIDTH) ** 2)).softmax(dim=0).to(images.device)
    weight_NBHW = likeness_NBHW + PLACE_WEIGHT * nearness_B[None, :, None, None]
    return weight_NBHW / (1 + PLACE_WEIGHT)


def neighbours(channel: Tensor) -> Tensor:
    """Values (N, B, H, W) around each pixel of a channel (N, H, W); beyond the border, the border's."""
    height, width = channel.shape[1:]
    reach = max(DISTANCES)
    padded = F.pad(channel[:, None], [reach] * 4, mode="replicate")[:, 0]
    shifted = [
        padded[:, reach + d * row : reach + d * row + height, reach + d * column : reach + d * column + width]
        for d in DISTANCES
        for row, column in AROUND
    ]
    return torch.stack(shifted, dim=1)


def _unlike(near_NBHW: Tensor, own_NHW: Tensor) -> Tensor:
    """Minus the squared difference from each neighbour, in units of their spread."""
    spread = near_NBHW.std(dim=1, keepdim=True)
    return -(((near_NBHW - own_NHW[:, None]).abs() / (spread + EPSILON) / WIDTH) ** 2)
