"""Mixture prior against torch.distributions, and the restricted posterior against Bayes' rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from brnf.models.mixture import ClassMixture, posterior


def mixture(components: int = 3, dim: int = 5, num_classes: int = 4) -> ClassMixture:
    return ClassMixture(num_classes, components, dim, 1.5, trainable=False, generator_seed=2).double()


def latents(count: int, dim: int) -> Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("components", [1, 3])
def test_class_log_prob__matches_torch_distributions(components: int) -> None:
    prior, z = mixture(components), latents(7, 5)
    for index, means_KD in enumerate(prior.means):
        oracle = MixtureSameFamily(
            Categorical(torch.ones(components, dtype=torch.float64)), Independent(Normal(means_KD, 1.0), 1)
        )
        torch.testing.assert_close(prior.class_log_prob(z)[:, index], oracle.log_prob(z), atol=1e-9, rtol=0)


def test_class_log_prob__integrates_to_one() -> None:
    axis = torch.arange(-12, 12, 0.05, dtype=torch.float64)
    mass = mixture(dim=2).class_log_prob(torch.cartesian_prod(axis, axis)).exp().sum(0) * 0.05**2
    torch.testing.assert_close(mass, torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_class_log_prob__float32_at_full_size() -> None:
    prior = ClassMixture(21, 2, 768, 1.0, trainable=True, generator_seed=0)
    z = latents(32, 768)
    error = prior.class_log_prob(z.float()).double() - prior.double().class_log_prob(z)
    assert error.abs().max() < 1e-2  # nats, of some thousand


def test_means__parameter_or_buffer() -> None:
    trainable = ClassMixture(3, 2, 4, 1.0, trainable=True, generator_seed=0)
    fixed = ClassMixture(3, 2, 4, 1.0, trainable=False, generator_seed=0)
    assert [name for name, _ in trainable.named_parameters()] == ["means"]
    assert not list(fixed.parameters())
    assert torch.equal(trainable.state_dict()["means"], fixed.state_dict()["means"])


def test_sample__moments_follow_class_and_std() -> None:
    prior = mixture(components=2)
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([2] * 20000 + [0] * 20000)
    z = prior.sample(classes, 0.5, generator)
    for index, part in ((2, z[:20000]), (0, z[20000:])):
        first, second = prior.means[index]
        torch.testing.assert_close(part.mean(0), (first + second) / 2, atol=0.05, rtol=0)
        # Law of total covariance: noise within components plus the spread of their means.
        spread = torch.outer(first - second, first - second) / 4
        torch.testing.assert_close(part.T.cov(), 0.25 * torch.eye(5).double() + spread, atol=0.1, rtol=0)
    assert not z.requires_grad
    assert torch.equal(z, prior.sample(classes, 0.5, torch.Generator().manual_seed(0)))


def test_sample__no_noise_gives_the_means() -> None:
    prior = mixture(components=1)
    classes = torch.tensor([3, 1, 3])
    assert torch.equal(prior.sample(classes, 0.0, torch.Generator()), prior.means[classes, 0])


def allowed_sets() -> Tensor:
    return torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 7.5])
def test_posterior__is_bayes_rule_on_allowed_classes(temperature: float) -> None:
    class_log_prob, allowed = mixture().class_log_prob(latents(4, 5)), allowed_sets()
    result = posterior(class_log_prob, allowed, temperature)
    density = (class_log_prob / temperature).exp() * allowed
    torch.testing.assert_close(result, density / density.sum(1, keepdim=True))
    torch.testing.assert_close(result.sum(1), torch.ones(4, dtype=torch.float64))
    assert not result[~allowed].any()


def test_posterior__gradients_are_finite_where_probabilities_vanish() -> None:
    class_log_prob = torch.tensor([[-1e4, 0.0, 5.0, -3e4]] * 4, requires_grad=True)
    result = posterior(class_log_prob, allowed_sets(), 1.0)
    (result * torch.arange(4)).sum().backward()
    assert class_log_prob.grad is not None and class_log_prob.grad.isfinite().all()
    assert not class_log_prob.grad[~allowed_sets()].any()


def test_posterior__tempering_keeps_the_order() -> None:
    class_log_prob, allowed = mixture().class_log_prob(latents(4, 5)), allowed_sets()
    sharp, soft = (posterior(class_log_prob, allowed, t) for t in (1.0, 20.0))
    assert torch.equal(sharp.argmax(1), soft.argmax(1))
    assert (soft.max(1).values <= sharp.max(1).values).all() and soft[0].max() < sharp[0].max()


def test_no_rows() -> None:
    prior = mixture()
    log_prob = prior.class_log_prob(torch.zeros(0, 5, dtype=torch.float64))
    assert posterior(log_prob, torch.zeros(0, 4, dtype=torch.bool), 1.0).shape == (0, 4)
    assert prior.sample(torch.zeros(0, dtype=torch.long), 1.0, torch.Generator()).shape == (0, 5)
    assert math.isfinite(log_prob.sum().item())
