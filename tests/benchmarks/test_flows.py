"""Cost of log_prob and its backward pass against library flows of the same size, in one run.

Same features, couplings and hidden layers; a standard normal as prior. Rounds alternate between the flows, so that a
machine that is slow for a while is slow for all; ratios are of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from brnf.models.flow import Flow

pytestmark = pytest.mark.benchmark

DIM, DEPTH, WIDTH, PIXELS, ROUNDS = 768, 4, 256, 4096, 15


class Ours(nn.Module):
    def __init__(self, glow: bool) -> None:
        super().__init__()
        self.flow = Flow(DIM, DEPTH, WIDTH, 2.0, 0, glow=glow)

    def forward(self, x: Tensor) -> Tensor:
        z, log_det = self.flow(x)
        return log_det - 0.5 * z.square().sum(dim=1)


class Zuko(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        zuko = pytest.importorskip("zuko")
        self.flow = zuko.flows.RealNVP(DIM, transforms=DEPTH, hidden_features=(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)


class Normflows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        nf = pytest.importorskip("normflows")
        layers: list[nn.Module] = []
        for _ in range(DEPTH):
            steering = nf.nets.MLP([DIM // 2, WIDTH, WIDTH, DIM], init_zeros=True)
            layers += [nf.flows.AffineCouplingBlock(steering), nf.flows.Permute(DIM)]
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(DIM, trainable=False), layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


class Freia(nn.Module):
    """Blocks of two couplings."""

    def __init__(self) -> None:
        super().__init__()
        freia = pytest.importorskip("FrEIA")
        self.flow = freia.framework.SequenceINN(DIM)
        for _ in range(DEPTH // 2):
            self.flow.append(freia.modules.GLOWCouplingBlock, subnet_constructor=self.steering)
            self.flow.append(freia.modules.PermuteRandom)

    @staticmethod
    def steering(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        z, log_det = self.flow(x)
        return log_det - 0.5 * z.square().sum(dim=1)


def test_log_prob_and_backward__is_not_slower_than_library_flows(capsys: pytest.CaptureFixture[str]) -> None:
    made: dict[str, Callable[[], nn.Module]] = {
        "brnf": lambda: Ours(glow=False),
        "brnf, glow": lambda: Ours(glow=True),
        "zuko": Zuko,
        "normflows": Normflows,
        "FrEIA": Freia,
    }
    flows = {name: make() for name, make in made.items()}
    x = torch.randn(PIXELS, DIM)
    seconds: dict[str, list[float]] = {name: [] for name in flows}
    for _ in range(ROUNDS):
        for name, flow in flows.items():
            started = time.perf_counter()
            flow.zero_grad(set_to_none=True)
            flow(x).mean().backward()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    with capsys.disabled():
        print(f"\nlog_prob and backward of {PIXELS} vectors of {DIM}, {DEPTH} couplings of width {WIDTH}")
        for name, value in median.items():
            print(f"  {name:12} {1000 * value:7.1f} ms  {value / median['brnf']:5.2f} x brnf")
    slower = {name: value for name, value in median.items() if value < median["brnf"] and name != "brnf, glow"}
    assert not slower, f"faster than ours: {slower}"
