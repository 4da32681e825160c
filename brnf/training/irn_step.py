"""One training step of the boundary network (IRN), as plain torch in one process.

N images, C classes with background at 0, H W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brnf.affinity import LOSS_WEIGHTS, pair_losses, sure_labels
from brnf.config import BackboneConfig, RunConfig
from brnf.models.irn import BoundaryNetwork, Field
from brnf.training.batch import Batch
from brnf.training.collectives import global_means, sum_over_ranks
from brnf.training.device import autocast
from brnf.training.schedule import polynomial
from brnf.training.step import Metrics, Wrap, finish_step, unwrapped


class IrnState(nn.Module):
    """The boundary network, under the name that the loop looks for; its state dict is the whole state of the method.

    Args:
        backbone: Feature extractor.
    """

    def __init__(self, backbone: BackboneConfig) -> None:
        super().__init__()
        self.network = BoundaryNetwork(backbone)


class IrnStep:
    """A step of the boundary network; once it has learned, a step of measuring the displacement's mean.

    Args:
        model: On its device.
        config: Resolved configuration.
        total_steps: Steps that it learns in; those after them measure.
        wrap: Makes a module's forward synchronise gradients (DDP); the identity in one process.
    """

    def __init__(self, model: IrnState, config: RunConfig, total_steps: int, wrap: Wrap = unwrapped) -> None:
        self.model, self.config, self.total_steps = model, config, total_steps
        self.network = wrap(model.network)
        self.optim, self.options = config.irn.optim, config.irn
        boundary, displacement = model.network.parameter_groups()
        self.rates = (self.optim.lr_new, self.optim.lr_new * self.options.displacement_rate)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "network": torch.optim.SGD(
                [{"params": boundary}, {"params": displacement}],
                lr=self.optim.lr_new, momentum=self.optim.momentum, weight_decay=self.optim.weight_decay,
            )
        }  # fmt: skip

    def __call__(self, batch: Batch, step: int) -> Metrics:
        """Train or measure on the batch of step `step` (from 0); returns global means of what was measured."""
        if step >= self.total_steps:
            return self._measure(batch)
        assert batch.seed is not None
        field = self._read(self.network, batch)
        ratios = pair_losses(field.boundary, field.displacement, sure_labels(batch.seed), self.options.radius)
        terms, means = global_means(ratios)
        loss = torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum()
        return means | {"gradient_norm": self._update(loss, step / self.total_steps)}

    def _read(self, network: nn.Module, batch: Batch) -> Field:
        with autocast(batch.images.device, self.config.compute.precision):
            return network(batch.images)

    def _update(self, loss: Tensor, progress: float) -> Tensor:
        factor = polynomial(progress, self.optim.poly_power)
        for group, rate in zip(self.optimizers["network"].param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return finish_step(loss, self.optimizers["network"], self.optim.clip_norm)

    @torch.no_grad()
    def _measure(self, batch: Batch) -> Metrics:
        """Take the batch's displacements into their mean (IRN measures it after training, too)."""
        shift, valid_N1HW = self.model.network.mean_shift, batch.valid[:, None]
        displacement = self._read(self.model.network, batch).displacement.double()
        sums = torch.cat([(displacement * valid_N1HW).sum(dim=(0, 2, 3)), valid_N1HW.sum()[None]])
        total, count = sum_over_ranks(sums).split([2, 1])
        shift.update(total, count[0])
        row, column = shift.total / shift.count.clamp_min(1)
        return {"displacement_row": row, "displacement_column": column}

    @torch.no_grad()
    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """What to look at: boundaries, and the cells that they are learned from."""
        assert batch.seed is not None
        boundary_NHW = self._read(self.model.network, batch).boundary.sigmoid()
        return {"boundary": torch.stack([1 - boundary_NHW, boundary_NHW], dim=1), "sure cells": batch.seed}
