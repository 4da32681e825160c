"""A normalizing flow: affine couplings that move two halves of the mixed features in turn, in full precision."""

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

    A rotation comes first, so that either half holds something of every level that a hierarchical feature is
    concatenated from. Its log-determinant is 0; trainable mixing layers diverge instead. Parameters and mixing follow
    from generator_seed alone, whatever was drawn before.

    Args:
        dim: Features D, 2 or more.
        depth: Couplings L; every second one moves the second half.
        width: Hidden units of the couplings' networks.
        clamp: Bound on the log-scale of a coupling.
        generator_seed: Random seed of mixing and of the initial parameters.
        glow: No rotation; features are permuted between blocks of two couplings.

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
        self.glow = glow
        self.halves = (dim // 2, dim - dim // 2)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator_seed)
            if glow:
                self.register_buffer("orders", torch.stack([torch.randperm(dim) for _ in range((depth + 1) // 2)]))
            else:
                self.register_buffer("rotation", random_rotation(dim).to(torch.get_default_dtype()))
            couplings = nn.ModuleList(
                AffineCoupling(self.halves[1 - index % 2], self.halves[index % 2], width, clamp, glow)
                for index in range(depth)
            )
        self.couplings = cast(Sequence[AffineCoupling], couplings)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map features x (P,D) to latents z (P,D); also log |det dz/dx| (P,), in nats."""
        with torch.autocast(x.device.type, enabled=False):
            z = full_precision(x)
            log_det = z.new_zeros(len(z))
            halves = list((z if self.glow else z @ self.rotation).split(self.halves, dim=1))
            for index, coupling in enumerate(self.couplings):
                if self.permutes_before(index):
                    halves = list(torch.cat(halves, dim=1)[:, self.orders[index // 2]].split(self.halves, dim=1))
                moved = index % 2
                halves[moved], step = coupling(halves[1 - moved], halves[moved])
                log_det = log_det + step
            return torch.cat(halves, dim=1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents z (P,D) back to features x (P,D)."""
        with torch.autocast(z.device.type, enabled=False):
            halves = list(full_precision(z).split(self.halves, dim=1))
            for index, coupling in reversed(list(enumerate(self.couplings))):
                moved = index % 2
                halves[moved] = coupling.inverse(halves[1 - moved], halves[moved])
                if self.permutes_before(index):
                    order = self.orders[index // 2].argsort()
                    halves = list(torch.cat(halves, dim=1)[:, order].split(self.halves, dim=1))
            x = torch.cat(halves, dim=1)
            return x if self.glow else x @ self.rotation.T

    def permutes_before(self, index: int) -> bool:
        return self.glow and index > 0 and index % 2 == 0


def random_rotation(dim: int) -> Tensor:
    """An orthogonal float64 matrix (D,D), uniform under the Haar measure, from torch's current random state."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    return q * r.diagonal().sign()
