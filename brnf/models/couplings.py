"""Affine coupling layers."""

# P vectors, D features, A features that steer, B features that are moved (A + B = D)

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GLOW_INIT_STD = 0.05
"""DDFP: near the identity, but not at it."""


class AffineCoupling(nn.Module):
    """Scales and shifts one half of the features by amounts read off the other half.

    Args:
        dim: Features D, 2 or more.
        width: Hidden units of the steering network.
        clamp: Bound on the log-scale.
        flip: Moves the first half instead of the second.
        glow: As in DDFP: log-scale clamp * 2/pi * atan(raw), all parameters drawn with deviation 0.05. Otherwise
            clamp * tanh(raw / clamp), and a last layer that starts at zero: a new coupling is the identity.

    Source:
        Dinh et al. 2016 (RealNVP), section 3.2. https://arxiv.org/abs/1605.08803
        Departs from it: the log-scale is bounded softly. Half a block of glow: https://github.com/Gavinwxy/DDFP.
    """

    def __init__(self, dim: int, width: int, clamp: float, flip: bool, glow: bool = False) -> None:
        super().__init__()
        assert dim >= 2, f"a coupling splits its features in two, got {dim}"
        self.clamp = clamp
        self.glow = glow
        self.flip = flip
        self.halves = (dim // 2, dim - dim // 2)
        moved, steering = self.halves if flip else self.halves[::-1]
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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (P,D) to y (P,D); also log |det dy/dx| (P,), in nats."""
        steering_PA, moved_PB = self.split(x)
        log_scale_PB, shift_PB = self.scale_and_shift(steering_PA)
        return self.join(steering_PA, moved_PB * log_scale_PB.exp() + shift_PB), log_scale_PB.sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y (P,D) back to x (P,D)."""
        steering_PA, moved_PB = self.split(y)
        log_scale_PB, shift_PB = self.scale_and_shift(steering_PA)
        return self.join(steering_PA, (moved_PB - shift_PB) * (-log_scale_PB).exp())

    def scale_and_shift(self, steering_PA: Tensor) -> tuple[Tensor, Tensor]:
        raw_PB, shift_PB = self.network(steering_PA).chunk(2, dim=1)
        if self.glow:
            return self.clamp * (2 / math.pi) * torch.atan(raw_PB), shift_PB
        return self.clamp * torch.tanh(raw_PB / self.clamp), shift_PB

    def split(self, x_PD: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x_PD.split(self.halves, dim=1)
        return (second, first) if self.flip else (first, second)

    def join(self, steering_PA: Tensor, moved_PB: Tensor) -> Tensor:
        return torch.cat((moved_PB, steering_PA) if self.flip else (steering_PA, moved_PB), dim=1)
