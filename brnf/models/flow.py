"""A normalizing flow: affine couplings with fixed mixing of features between them, always in full precision."""

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

    A rotation comes first, which mixes the levels that a hierarchical feature is concatenated from; permutations come
    between couplings. Both have log-determinant 0; trainable mixing layers diverge instead. Parameters and mixing
    follow from generator_seed alone, whatever was drawn before.

    Args:
        dim: Features D.
        depth: Couplings L; every second one moves the other half.
        width: Hidden units of the couplings' networks.
        clamp: Bound on the log-scale of a coupling.
        generator_seed: Random seed of mixing and of the initial parameters.
        glow: Blocks of two couplings, the first half moved first; no rotation, and permutations between blocks only.

    Source:
        Dinh et al. 2016 (RealNVP). https://arxiv.org/abs/1605.08803
        Departs from it: the rotation, no batch norm.
        With glow: https://github.com/Gavinwxy/DDFP, whose blocks are FrEIA's GLOWCouplingBlock.
    """

    rotation: Tensor
    orders: Tensor

    def __init__(
        self, dim: int, depth: int, width: int, clamp: float, generator_seed: int, glow: bool = False
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator_seed)
            rotation = torch.eye(dim) if glow else random_rotation(dim)
            self.register_buffer("rotation", rotation.to(torch.get_default_dtype()))
            self.register_buffer("orders", torch.stack([torch.randperm(dim) for _ in range(depth)]))
            couplings = nn.ModuleList(
                AffineCoupling(dim, width, clamp, flip=(index % 2 == 0) == glow, glow=glow) for index in range(depth)
            )
        self.couplings = cast(Sequence[AffineCoupling], couplings)
        self.rotates = not glow
        self.permutes = [index > 0 and (index % 2 == 0 or not glow) for index in range(depth)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map features x (P,D) to latents z (P,D); also log |det dz/dx| (P,), in nats."""
        with torch.autocast(x.device.type, enabled=False):
            z = full_precision(x)
            z = z @ self.rotation if self.rotates else z
            log_det = z.new_zeros(len(z))
            for coupling, order, permutes in zip(self.couplings, self.orders, self.permutes, strict=True):
                z, step = coupling(z[:, order] if permutes else z)
                log_det = log_det + step
            return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents z (P,D) back to features x (P,D)."""
        with torch.autocast(z.device.type, enabled=False):
            x = full_precision(z)
            for coupling, order, permutes in zip(
                reversed(self.couplings), self.orders.flip(0), reversed(self.permutes), strict=True
            ):
                x = coupling.inverse(x)
                x = x[:, order.argsort()] if permutes else x
            return x @ self.rotation.T if self.rotates else x


def random_rotation(dim: int) -> Tensor:
    """An orthogonal float64 matrix (D,D), uniform under the Haar measure, from torch's current random state."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    return q * r.diagonal().sign()
