"""The methods that one training loop runs, and all that it has to know of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from brnf.config import OptimConfig, RunConfig
from brnf.models.brnf import Brnf
from brnf.models.irn import STRIDE
from brnf.training.batch import Batch
from brnf.training.irn_step import IrnState, IrnStep
from brnf.training.state import new_state
from brnf.training.step import Metrics, Wrap, new_step


class Step(Protocol):
    """A training step with what it optimises."""

    optim: OptimConfig
    optimizers: dict[str, Optimizer]

    def __call__(self, batch: Batch, step: int) -> Metrics:
        """Train on the batch of step `step` (from 0); returns global means of what was measured."""
        ...

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Maps (N, C, H, W) in [0, 1] to look at, background first, by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """What the loop does differently for a method."""

    optim: Callable[[RunConfig], OptimConfig]
    """Epochs, batch size and rates."""
    stride: Callable[[RunConfig], int]
    """Pixels of the image that a cell of a batch's seeds stands for."""
    new_state: Callable[[RunConfig, int], Brnf | IrnState]
    """Builds what is trained, from configuration and number of classes."""
    new_step: Callable[[Any, RunConfig, int, Wrap], Step]
    """Builds the step that trains it, from it, configuration, steps to learn in, and `Wrap`."""
    measuring_epochs: int = 0
    """Epochs after those that it learns in."""

    def epochs(self, config: RunConfig) -> int:
        """Epochs of the whole run."""
        return self.optim(config).epochs + self.measuring_epochs


METHODS: dict[str, Method] = {
    "sipe": Method(
        optim=lambda config: config.base.optim,
        stride=lambda config: config.backbone.output_stride,
        new_state=functools.partial(new_state, method="sipe"),
        new_step=new_step,
    ),
    "brnf": Method(
        optim=lambda config: config.brnf.optim,
        stride=lambda config: config.backbone.output_stride,
        new_state=functools.partial(new_state, method="brnf"),
        new_step=new_step,
    ),
    "irn": Method(
        optim=lambda config: config.irn.optim,
        stride=lambda config: STRIDE,
        new_state=lambda config, num_classes: IrnState(config.backbone),
        new_step=IrnStep,
        measuring_epochs=1,
    ),
}
