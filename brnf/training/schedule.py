"""Learning rates and weights as functions of progress, the share of the run that is done.

Nothing here has state, so a resumed run needs none of it in its checkpoint.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from brnf.config import FlowConfig, OptimConfig


def polynomial(progress: float, power: float) -> float:
    """Factor on the network's learning rates (SIPE's poly decay)."""
    return (1 - min(progress, 1.0)) ** power


def exponential(progress: float, config: FlowConfig) -> float:
    """A flow's learning rate: from lr to lr_final geometrically (DDFP decays by epoch, this by step)."""
    return config.lr * math.exp(min(progress, 1.0) * math.log(config.lr_final / config.lr))


def ramp(progress: float, start: float, length: float) -> float:
    """Linear from 0 at `start` to 1 at `start + length`."""
    if progress < start:
        return 0.0
    return min(1.0, (progress - start) / length) if length > 0 else 1.0


def set_network_rates(optimizer: Optimizer, config: OptimConfig, progress: float) -> None:
    """Set the learning rates of the two groups that `network_optimizer` makes."""
    factor = polynomial(progress, config.poly_power)
    backbone, new = optimizer.param_groups
    backbone["lr"], new["lr"] = config.lr_backbone * factor, config.lr_new * factor
