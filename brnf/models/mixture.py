"""Gaussian mixture prior with components per class, and the flow that carries features to it."""

# P vectors, D features, C classes incl. background, K components a class

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from brnf.config import FlowConfig
from brnf.models.flow import Flow, full_precision


def posterior(class_log_prob: Tensor, allowed: Tensor, temperature: float | Tensor) -> Tensor:
    """Tempered posterior over the classes an image may show, under a uniform class prior.

    Args:
        class_log_prob: log p(z|c) (P,C), in nats; a log-determinant would cancel.
        allowed: Image labels and background (P,C), bool, at least one a row.
        temperature: Divides the log-probabilities.

    Returns:
        Probabilities (P,C): each row sums to one over allowed classes, exact zeros elsewhere.
    """
    log_prob_PC = full_precision(class_log_prob) / temperature
    # The lowest finite number, not -inf: rows stay free of NaN in the backward pass, and exp still gives exactly 0.
    return log_prob_PC.masked_fill(~allowed, torch.finfo(log_prob_PC.dtype).min).softmax(dim=1) * allowed


def weigh_background(posterior: Tensor, odds: float) -> Tensor:
    """The posterior (N,C,...) under other prior odds of the background, class 0, against each other class."""
    if odds == 1:
        return posterior
    weighed = torch.cat([odds * posterior[:, :1], posterior[:, 1:]], dim=1)
    return weighed / weighed.sum(dim=1, keepdim=True)


def log_prob_of(class_log_prob: Tensor, classes: Tensor) -> Tensor:
    """The entries (P,) of class_log_prob (P,C) that belong to classes (P,)."""
    return class_log_prob.gather(1, classes[:, None])[:, 0]


class ClassMixture(nn.Module):
    """K Gaussians a class with unit covariance and equal weights.

    Args:
        num_classes: Classes C, background included.
        components: Gaussians a class, K.
        dim: Features D.
        mean_scale: Standard deviation that the means are drawn with.
        trainable: Whether the means are parameters; else a buffer.
        generator_seed: Random seed of the means.

    Source:
        Izmailov et al. 2020 (FlowGMM), section 3. https://arxiv.org/abs/1912.13025
        Departs from it: means may be trained, several components a class.
    """

    means: Tensor

    def __init__(
        self, num_classes: int, components: int, dim: int, mean_scale: float, trainable: bool, generator_seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(generator_seed)
        means_CKD = mean_scale * torch.randn(num_classes, components, dim, generator=generator)
        if trainable:
            self.means = nn.Parameter(means_CKD)
        else:
            self.register_buffer("means", means_CKD)

    def class_log_prob(self, z: Tensor) -> Tensor:
        """log p(z|c) of latents z (P,D) under every class (P,C), in nats."""
        num_classes, components, dim = self.means.shape
        with torch.autocast(z.device.type, enabled=False):
            z_PD, means_MD = full_precision(z), self.means.flatten(0, 1)  # M = C * K
            # |z - mean|^2 by one matmul; the difference itself would take P * M * D numbers.
            distance_PM = z_PD.square().sum(1, keepdim=True) - 2 * z_PD @ means_MD.T + means_MD.square().sum(1)
            log_prob_PM = -0.5 * (distance_PM + dim * math.log(2 * math.pi)) - math.log(components)
            return log_prob_PM.unflatten(1, (num_classes, components)).logsumexp(dim=2)

    @torch.no_grad()
    def sample(self, classes: Tensor, std: float, generator: torch.Generator) -> Tensor:
        """Draw one latent (P,D) for each of classes (P,): a random component's mean plus noise of deviation std."""
        _, components, dim = self.means.shape
        num, device = len(classes), generator.device
        component_P = torch.randint(components, (num,), generator=generator, device=device).to(classes.device)
        noise_PD = torch.randn(num, dim, generator=generator, device=device, dtype=self.means.dtype)
        return self.means[classes, component_P] + std * noise_PD.to(self.means.device)


class FlowMixture(nn.Module):
    """Density of standardised features, class by class: a flow with a Gaussian mixture prior.

    Args:
        dim: Features D.
        num_classes: Classes C, background included.
        config: Depth, width, clamp, components and means.
        generator_seed: Random seed of everything drawn here.

    Source:
        Izmailov et al. 2020 (FlowGMM). https://arxiv.org/abs/1912.13025.
    """

    def __init__(self, dim: int, num_classes: int, config: FlowConfig, generator_seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(generator_seed)
        # Seeds of their own: with one seed for both, mixing and means would be the same draws.
        flow_seed, mixture_seed = torch.randint(2**62, (2,), generator=generator).tolist()
        self.flow = Flow(
            dim, config.depth, config.width, config.clamp, flow_seed, glow=config.architecture == "glow"
        )
        self.mixture = ClassMixture(
            num_classes, config.components, dim, config.mean_scale, config.trainable_means, mixture_seed
        )

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised features u (P,D) to log N(f(u)|c) (P,C), without the log-determinant, and that (P,), in nats."""
        z, log_det = self.flow(u)
        return self.mixture.class_log_prob(z), log_det
