"""A normalizing flow: affine couplings with fixed mixing of features before each, always in full precision."""

# P vectors, D features, L couplings

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from brnf.models.couplings import AffineCoupling


def full_precision(x: Tensor) -> Tensor:
    """x as float32 or, where it already is, float64: half precision costs several nats."""
    return x if x.dtype == torch.float64 else x.float()


class Flow(nn.Module):
    """Invertible map of feature vectors with a tractable Jacobian determinant.

    A rotation has log-determinant 0 and its transpose as inverse; trainable mixing layers diverge instead. The first
    one mixes the levels that a hierarchical feature is concatenated from. Parameters and rotations follow from
    generator_seed alone, whatever was drawn before.

    Args:
        dim: Features D.
        depth: Couplings L; every second one moves the other half.
        width: Hidden units of the couplings' networks.
        clamp: Bound on the log-scale of a coupling.
        generator_seed: Random seed of the rotations and of the initial parameters.
        glow: Blocks of two couplings, the first half moved first, with a permutation between blocks.

    Source:
        Dinh et al. 2016 (RealNVP). https://arxiv.org/abs/1605.08803
        Departs from it: fixed random rotations in place of permutations, no batch norm.
        With glow: https://github.com/Gavinwxy/DDFP, whose blocks are FrEIA's GLOWCouplingBlock.
    """

    rotations: Tensor

    def __init__(
        self, dim: int, depth: int, width: int, clamp: float, generator_seed: int, glow: bool = False
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator_seed)
            rotations = [block_permutation(dim, index) if glow else random_rotation(dim) for index in range(depth)]
            couplings = nn.ModuleList(
                AffineCoupling(dim, width, clamp, flip=(index % 2 == 0) == glow, glow=glow) for index in range(depth)
            )
        self.couplings = cast(Sequence[AffineCoupling], couplings)
        self.register_buffer("rotations", torch.stack(rotations).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map features x (P,D) to latents z (P,D); also log |det dz/dx| (P,), in nats."""
        with torch.autocast(x.device.type, enabled=False):
            z = full_precision(x)
            log_det = z.new_zeros(len(z))
            for coupling, rotation in zip(self.couplings, self.rotations, strict=True):
                z, step = coupling(z @ rotation)
                log_det = log_det + step
            return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents z (P,D) back to features x (P,D)."""
        with torch.autocast(z.device.type, enabled=False):
            x = full_precision(z)
            for coupling, rotation in zip(reversed(self.couplings), self.rotations.flip(0), strict=True):
                x = coupling.inverse(x) @ rotation.T
            return x


def block_permutation(dim: int, index: int) -> Tensor:
    """The matrix (D,D) before coupling `index`: a random permutation where a block after the first begins."""
    identity = torch.eye(dim, dtype=torch.float64)
    return identity[torch.randperm(dim)] if index % 2 == 0 and index > 0 else identity


def random_rotation(dim: int) -> Tensor:
    """An orthogonal float64 matrix (D,D), uniform under the Haar measure, from torch's current random state."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    return q * r.diagonal().sign()
