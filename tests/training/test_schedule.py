"""Learning rates and ramps are functions of progress."""

from __future__ import annotations

import pytest
import torch

from brnf.config import FlowConfig, OptimConfig
from brnf.training.schedule import exponential, polynomial, ramp, set_network_rates


def test_polynomial__falls_from_one_to_zero() -> None:
    assert polynomial(0.0, 0.9) == 1 and polynomial(1.0, 0.9) == 0
    assert polynomial(0.5, 0.9) == pytest.approx(0.5**0.9)


def test_exponential__goes_from_lr_to_lr_final_by_equal_factors() -> None:
    config = FlowConfig(lr=1e-2, lr_final=1e-4)
    assert [exponential(p, config) for p in (0.0, 0.5, 1.0)] == pytest.approx([1e-2, 1e-3, 1e-4])


def test_ramp__is_linear_between_its_ends() -> None:
    assert [ramp(p, 0.2, 0.1) for p in (0.0, 0.19, 0.25, 0.3, 0.9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [ramp(p, 0.2, 0.0) for p in (0.1, 0.2)] == [0, 1]


def test_set_network_rates__keeps_the_ratio_of_new_to_pretrained_layers() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    set_network_rates(optimizer, OptimConfig(lr_backbone=0.01, lr_new=0.1), progress=0.7)
    backbone, new = (group["lr"] for group in optimizer.param_groups)
    assert new / backbone == pytest.approx(10) and backbone == pytest.approx(0.01 * 0.3**0.9)
