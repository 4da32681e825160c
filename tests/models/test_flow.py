"""Couplings and flow against autograd: inverse, log-determinant, precision, learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from brnf.config import FlowConfig
from brnf.models.couplings import AffineCoupling
from brnf.models.flow import Flow
from brnf.models.mixture import FlowMixture, log_prob_of

M = TypeVar("M", bound=nn.Module)


@pytest.fixture
def float64() -> Iterator[None]:
    """Build and draw in float64, so that oracles agree to rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def perturbed(module: M, scale: float = 0.3) -> M:
    """The module with noise on every parameter: at its start a coupling is the identity and proves nothing."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def jacobian_log_det(function: Callable[[Tensor], tuple[Tensor, Tensor]], x_PD: Tensor) -> Tensor:
    """log |det| of each row's Jacobian by autograd."""
    rows = [torch.autograd.functional.jacobian(lambda row: function(row[None])[0][0], row) for row in x_PD]
    return torch.stack([torch.linalg.slogdet(row)[1] for row in rows])


@pytest.mark.parametrize(("steering", "moved"), [(1, 1), (2, 3), (3, 2), (4, 4)])
def test_coupling__inverse_and_log_det(float64: None, steering: int, moved: int) -> None:
    coupling = perturbed(AffineCoupling(steering, moved, 16, 2.0))
    beside, x = draw(6, steering + moved).split((steering, moved), dim=1)
    y, log_det = coupling(beside, x)
    torch.testing.assert_close(coupling.inverse(beside, y), x)
    for row in range(len(x)):
        one = jacobian_log_det(lambda v, row=row: coupling(beside[row : row + 1], v), x[row : row + 1])
        torch.testing.assert_close(log_det[row], one[0])
    assert log_det.abs().min() > 1e-3


def test_glow__is_the_block_of_ddfp_and_its_log_det_is_that_of_autograd(float64: None) -> None:
    """One block moves the first half by the second, then the second by the first; the next sees features permuted."""
    flow = Flow(6, 4, 16, 2.0, 3, glow=True)
    x = draw(5, 6)
    expected = x
    for block in (0, 2):
        expected = expected[:, flow.orders[block // 2]] if block else expected
        x1, x2 = expected.chunk(2, dim=1)
        s2, t2 = flow.couplings[block].network(x2).chunk(2, dim=1)
        y1 = torch.exp(2.0 * 2 / math.pi * torch.atan(s2)) * x1 + t2
        s1, t1 = flow.couplings[block + 1].network(y1).chunk(2, dim=1)
        expected = torch.cat([y1, torch.exp(2.0 * 2 / math.pi * torch.atan(s1)) * x2 + t1], dim=1)
    z, log_det = flow(x)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(flow.inverse(z), x)
    torch.testing.assert_close(log_det, jacobian_log_det(flow, x))
    assert sorted(flow.orders[1].tolist()) == list(range(6)) != flow.orders[1].tolist()
    weights = torch.cat([p.flatten() for p in Flow(64, 4, 64, 2.0, 3, glow=True).parameters()])
    assert weights.std().item() == pytest.approx(0.05, rel=0.02)


def test_coupling__starts_as_identity_and_bounds_its_scale(float64: None) -> None:
    coupling = AffineCoupling(3, 3, 16, 1.5)
    beside, x = draw(4, 6).chunk(2, dim=1)
    y, log_det = coupling(beside, x)
    assert torch.equal(y, x) and not log_det.any()
    _, log_det = perturbed(coupling, scale=50)(1e3 * beside, x)
    torch.testing.assert_close(log_det.abs().max(), torch.tensor(3 * 1.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dim", "depth", "width"), [(2, 1, 8), (3, 3, 8), (8, 2, 16), (8, 7, 32)])
def test_flow__inverse_and_log_det(float64: None, dim: int, depth: int, width: int) -> None:
    flow = perturbed(Flow(dim, depth, width, 2.0, generator_seed=3), 0.2)
    x = draw(5, dim)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(flow(flow.inverse(x))[0], x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_det, jacobian_log_det(flow, x), atol=1e-9, rtol=1e-9)


def test_flow__inverse_in_float32_at_full_size() -> None:
    flow = perturbed(Flow(256, 4, 256, 2.0, generator_seed=3), 0.01)
    x = draw(64, 256)
    assert (flow.inverse(flow(x)[0]) - x).abs().max() < 1e-4


def test_flow__mixing_is_orthogonal_and_its_own() -> None:
    torch.manual_seed(0)
    first = Flow(16, 3, 8, 2.0, generator_seed=5)
    before = torch.get_rng_state()
    second = Flow(16, 3, 8, 2.0, generator_seed=5)
    other = Flow(16, 3, 8, 2.0, generator_seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.rotation @ first.rotation.T, torch.eye(16), atol=1e-5, rtol=0)
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())
    assert not torch.equal(first.rotation, other.rotation)


def test_flow__state_dict_round_trip() -> None:
    flow, x = perturbed(Flow(6, 3, 8, 2.0, generator_seed=5)), draw(4, 6)
    restored = Flow(6, 3, 8, 2.0, generator_seed=99)
    restored.load_state_dict(flow.state_dict())
    assert torch.equal(restored(x)[0], flow(x)[0])


def test_flow__no_rows() -> None:
    flow = Flow(6, 3, 8, 2.0, generator_seed=5)
    z, log_det = flow(torch.zeros(0, 6))
    assert z.shape == (0, 6) and log_det.shape == (0,)
    log_det.sum().backward()
    assert flow.inverse(z).shape == (0, 6)


def test_flow_mixture__full_precision_under_autocast() -> None:
    model = perturbed(FlowMixture(16, 3, FlowConfig(width=32), generator_seed=0), 0.1)
    u = draw(32, 16)
    plain, plain_log_det = model(u)
    plain_inverse = model.flow.inverse(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (u @ u.T).dtype == torch.bfloat16
        cast, cast_log_det = model(u)
        from_half, _ = model(u.bfloat16())
        cast_inverse = model.flow.inverse(u)
    assert cast.dtype == cast_log_det.dtype == from_half.dtype == torch.float32
    assert torch.equal(cast, plain) and torch.equal(cast_log_det, plain_log_det)
    assert torch.equal(cast_inverse, plain_inverse)


def test_flow_mixture__every_parameter_gets_a_gradient() -> None:
    model = perturbed(FlowMixture(8, 3, FlowConfig(width=16, depth=3, components=2), generator_seed=0), 0.1)
    class_log_prob, log_det = model(draw(32, 8))
    (class_log_prob.mean() + log_det.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def two_moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standardised points (P,2) of two interleaved half circles, and which of the two (P,)."""
    angle = math.pi * torch.rand(count, generator=generator)
    label = torch.randint(2, (count,), generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.where(label[:, None] == 0, upper, lower) + 0.05 * torch.randn(count, 2, generator=generator)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5]), label


def test_flow_mixture__learns_two_moons() -> None:
    generator = torch.Generator().manual_seed(0)
    model = FlowMixture(2, 2, FlowConfig(depth=4, width=32), generator_seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def nll(count: int) -> Tensor:
        points, labels = two_moons(count, generator)
        class_log_prob, log_det = model(points)
        return -(log_prob_of(class_log_prob, labels) + log_det).mean()

    for _ in range(100):
        optimizer.zero_grad()
        nll(128).backward()
        optimizer.step()
    # One full-covariance Gaussian a class, each with its own moments, is what a mixture without a flow can reach.
    points, labels = two_moons(4096, generator)
    covariances = torch.stack([points[labels == c].T.cov() for c in (0, 1)])
    gaussian_nll = (0.5 * covariances.logdet() + 1 + math.log(2 * math.pi)).mean()
    with torch.no_grad():
        assert nll(4096) < gaussian_nll - 0.3
