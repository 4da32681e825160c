"""A BRNF model with everything that training accumulates: its state dict is the whole state of the method."""

from __future__ import annotations

import torch
from torch import Tensor

from brnf.config import RunConfig
from brnf.denoise import ThresholdTracker
from brnf.models.brnf import Brnf
from brnf.models.memory_bank import MemoryBank
from brnf.models.mixture import FlowMixture

MODULES = ("calibration", "denoise", "contrast")
"""Parts of the method whose share of active steps is counted."""
NUM_TEMPERATURES = 25


class BrnfState(Brnf):
    """Adds f2, the memory bank, BSDNF's thresholds and the fit of the temperature to the deployed model.

    Args:
        config: Resolved configuration.
        num_classes: C, background included.
    """

    temperature_grid: Tensor
    """Candidates, from 1 to D."""
    temperature_loss: Tensor
    """Cross-entropy of held-out pixels under each candidate since the last fit."""
    seen_pixels: Tensor
    """(C,) confident pixels that f1 has been trained on."""
    active_steps: Tensor
    """Steps in which each of MODULES had an effect."""

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        super().__init__(config, num_classes, "brnf")
        dim, options = self.feature_dim, config.brnf
        self.f2 = FlowMixture(dim, num_classes, options.f2, config.random_seed + 2)
        self.region_bank = MemoryBank(num_classes, options.contrast.region_size, dim)
        self.sampled_bank = MemoryBank(num_classes, options.contrast.sampled_size, dim)
        self.thresholds = ThresholdTracker(num_classes, options.denoise)
        grid = torch.logspace(0, torch.tensor(float(dim)).log10().item(), NUM_TEMPERATURES)
        self.register_buffer("temperature_grid", grid)
        self.register_buffer("temperature_loss", torch.zeros(NUM_TEMPERATURES))
        self.register_buffer("seen_pixels", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("active_steps", torch.zeros(len(MODULES), dtype=torch.long))


def new_state(config: RunConfig, num_classes: int, method: str) -> Brnf:
    """What `method` ("sipe" or "brnf") trains."""
    return BrnfState(config, num_classes) if method == "brnf" else Brnf(config, num_classes, method)
