"""What a step works on: the images of a batch, and what the network sees in them.

N images, C classes with background at 0, D features, H W cells, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from brnf.config import RunConfig
from brnf.models.cam import class_maps, correlation_feature, normalise_maps, prototype_maps
from brnf.training.device import autocast


@dataclass(frozen=True)
class Batch:
    """Images of one rank, on the step's device."""

    images: Tensor
    """(N, 3, S, S) uint8 RGB."""
    valid: Tensor
    """(N, H, W) bool, cells wholly inside the image."""
    allowed: Tensor
    """(N, C) bool, the image's tags and background."""
    keys: Tensor
    """(N,) int64 on the CPU, one random key per image and epoch."""
    seed: Tensor | None = None
    """(N, C, H, W) base seed in [0, 1]; zero outside `allowed` and the image."""


class Maps(NamedTuple):
    """What the network sees in a batch."""

    features: Tensor
    """(N, D, H, W), with gradient."""
    cam: Tensor
    """(N, C-1, H, W) raw activations, with gradient."""
    scores: Tensor
    """(N, C-1) logits of the tags."""
    classifier: Tensor
    """(N, C, H, W) classifier CAM in [0, 1]."""
    prototype: Tensor
    """(N, C, H, W) prototype CAM in [0, 1]."""
    prototypes: Tensor
    """(N, C, D)."""


def read_maps(network: nn.Module, batch: Batch, config: RunConfig) -> Maps:
    """Network, class maps, prototypes, prototype maps of a batch."""
    with autocast(batch.images.device, config.compute.precision):
        output = network(batch.images)
    classifier = class_maps(output.cam, batch.allowed, config.cam.mask_absent) * batch.valid[:, None]
    found = prototype_maps(
        output.features,
        correlation_feature(output, config.cam),
        classifier.detach(),
        batch.allowed,
        batch.valid,
        config.cam,
    )
    return Maps(output.features, output.cam, output.scores, classifier, normalise_maps(found.maps), found.prototypes)
