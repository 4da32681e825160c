"""The BRNF model: CAM network, feature standardiser, two flows, memory bank, BSDNF's thresholds, temperature.

Everything that training accumulates is a parameter or a buffer here, so a state dict is the whole state.
Structure: Qiu et al., ICCV 2025, overview figure; sizes and rules: fields of BrnfConfig.

N images, C classes with background at 0, D feature channels, H W cells, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brnf.config import RunConfig
from brnf.denoise import ThresholdTracker
from brnf.models.cam import CamNetwork
from brnf.models.memory_bank import MemoryBank
from brnf.models.mixture import FlowMixture, posterior

MODULE_ACTIVITIES = ("calibration", "denoise", "contrast")


class Standardiser(nn.Module):
    """Mean and standard deviation of each feature channel, over all valid cells seen (method.md M4).

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
        self.f1 = self.f2 = None
        if method == "sipe":
            return
        options, seed = config.brnf, config.random_seed
        self.f1 = FlowMixture(dim, num_classes, options.f1, seed + 1)
        self.f2 = FlowMixture(dim, num_classes, options.f2, seed + 2)
        self.standardiser = Standardiser(dim)
        self.region_bank = MemoryBank(num_classes, options.contrast.region_size, dim)
        self.sampled_bank = MemoryBank(num_classes, max(options.contrast.sampled_size, 1), dim)
        self.thresholds = ThresholdTracker(num_classes, options.denoise)
        self.register_buffer("temperature", torch.tensor(max(dim / 16, 1.0)))
        # Candidates for the temperature, and the cross-entropy of held-out pixels under each since the last fit.
        self.register_buffer("temperature_grid", torch.logspace(0, torch.log10(torch.tensor(float(dim))).item(), 25))
        self.register_buffer("temperature_loss", torch.zeros(25))
        self.register_buffer("seen_pixels", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("active_steps", torch.zeros(len(MODULE_ACTIVITIES), dtype=torch.long))

    @property
    def has_flow(self) -> bool:
        """Whether the posterior can be read out."""
        return self.f1 is not None

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
