"""The BRNF model as it is deployed: CAM network, feature standardiser, flow f1 with its mixture, temperature.

What only training needs (f2, memory bank, thresholds) is in training/state.py.
Structure: Qiu et al., ICCV 2025, overview figure; sizes and rules: fields of BrnfConfig.

N images, C classes with background at 0, D feature channels, H W cells, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brnf.config import RunConfig
from brnf.models.cam import CamNetwork
from brnf.models.mixture import FlowMixture, posterior


class Standardiser(nn.Module):
    """Mean and standard deviation of each feature channel, over all valid cells seen.

    Cumulative at first, then an exponential average, so early steps are unbiased. Constants of the flow's input,
    they are left out of log-determinants: they cancel in every comparison made here.

    Args:
        dim: D.
        momentum: Weight of the past once enough has been seen.
    """

    mean: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, dim: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.ones(dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, total: Tensor, square_total: Tensor, count: Tensor) -> None:
        """Take in the sum (D,) and sum of squares (D,) of `count` cells of one global batch."""
        self.updates += 1
        rate = (1 / self.updates.float()).clamp_min(1 - self.momentum)
        count = count.clamp_min(1)
        self.mean.lerp_(total / count, rate)
        self.square.lerp_(square_total / count, rate)

    @property
    def std(self) -> Tensor:
        """(D,) standard deviation, with a floor that keeps dead channels harmless."""
        return (self.square - self.mean**2).clamp_min(0).sqrt() + 1e-3

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features (P, D)."""
        return (features - self.mean) / self.std

    def inverse(self, standardised: Tensor) -> Tensor:
        """Undo `forward`."""
        return standardised * self.std + self.mean


class Brnf(nn.Module):
    """A base network (`method="sipe"`: the CAM network alone) or a full BRNF model.

    Args:
        config: Resolved configuration.
        num_classes: C, background included.
        method: "sipe" or "brnf".
    """

    temperature: Tensor

    def __init__(self, config: RunConfig, num_classes: int, method: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cam_config = config.cam
        self.network = CamNetwork(config.backbone, config.cam, num_classes)
        self.feature_dim = dim = self.network.feature_dim
        self.f1 = None
        if method == "brnf":
            self.f1 = FlowMixture(dim, num_classes, config.brnf.f1, config.random_seed + 1)
            self.standardiser = Standardiser(dim)
            given = config.brnf.calibration.temperature
            self.register_buffer("temperature", torch.tensor(max(dim / 16, 1.0) if given is None else given))

    @torch.no_grad()
    def posterior(self, features: Tensor, allowed: Tensor) -> Tensor:
        """Class posterior of every cell under f1's mixture, among the classes its image may hold.

        Args:
            features: (N, D, H, W) hierarchical feature.
            allowed: (N, C) bool.

        Returns:
            (N, C, H, W) float32, zero outside `allowed`, summing to one over it.

        Raises:
            ValueError: If the model is a base network.
        """
        if self.f1 is None:
            raise ValueError("read-out 'posterior' needs a BRNF run; this is a base run: use classifier or prototype")
        count, _, height, width = features.shape
        log_prob, _ = self.f1(self.standardiser(cells(features)))
        allowed_PC = allowed.repeat_interleave(height * width, dim=0)
        result = posterior(log_prob, allowed_PC, self.temperature)
        return result.view(count, height, width, -1).permute(0, 3, 1, 2)


def cells(features: Tensor) -> Tensor:
    """View feature maps (N, D, H, W) as rows (N*H*W, D), in float32."""
    return features.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
