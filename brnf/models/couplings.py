"""Affine coupling layers."""

# P vectors, A features that steer, B features that are moved

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GLOW_INIT_STD = 0.05
"""DDFP: near the identity, but not at it."""


class AffineCoupling(nn.Module):
    """Scales and shifts some features by amounts read off others.

    Args:
        steering: Features A that are read.
        moved: Features B that are scaled and shifted.
        width: Hidden units of the steering network.
        clamp: Bound on the log-scale.
        glow: As in DDFP: log-scale clamp * 2/pi * atan(raw), all parameters drawn with deviation 0.05. Otherwise
            clamp * tanh(raw / clamp), and a last layer that starts at zero: a new coupling is the identity.

    Source:
        Dinh et al. 2016 (RealNVP), section 3.2. https://arxiv.org/abs/1605.08803
        Departs from it: the log-scale is bounded softly. Half a block of glow: https://github.com/Gavinwxy/DDFP.
    """

    def __init__(self, steering: int, moved: int, width: int, clamp: float, glow: bool = False) -> None:
        super().__init__()
        assert steering > 0 and moved > 0, f"a coupling needs features on both sides, got {steering} and {moved}"
        self.clamp = clamp
        self.glow = glow
        last = nn.Linear(width, 2 * moved)
        self.network = nn.Sequential(
            nn.Linear(steering, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last
        )
        if glow:
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=GLOW_INIT_STD)
        else:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, steering_PA: Tensor, x_PB: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (P,B) to y (P,B), steered by the features (P,A) beside it; also log |det dy/dx| (P,), in nats."""
        log_scale_PB, shift_PB = self.scale_and_shift(steering_PA)
        return torch.addcmul(shift_PB, x_PB, log_scale_PB.exp()), log_scale_PB.sum(dim=1)

    def inverse(self, steering_PA: Tensor, y_PB: Tensor) -> Tensor:
        """Map y (P,B) back to x (P,B)."""
        log_scale_PB, shift_PB = self.scale_and_shift(steering_PA)
        return (y_PB - shift_PB) * (-log_scale_PB).exp()

    def scale_and_shift(self, steering_PA: Tensor) -> tuple[Tensor, Tensor]:
        raw_PB, shift_PB = self.network(steering_PA).chunk(2, dim=1)
        if self.glow:
            return self.clamp * (2 / math.pi) * torch.atan(raw_PB), shift_PB
        return self.clamp * torch.tanh(raw_PB / self.clamp), shift_PB
