"""Class activation maps and image-specific prototypes, the network that SIPE and BRNF share.

Chen et al., "Self-supervised Image-specific Prototype Exploration" (SIPE), CVPR 2022, sections 3.1 to 3.3;
formulas re-derived from its public code (chenqi1126/SIPE). Departures are fields of CamConfig.

N images, C classes with background at 0, D hierarchical channels, L channels of the last level, H W cells, P = H*W.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brnf.config import BackboneConfig, CamConfig
from brnf.models.backbones import build_backbone

EPSILON = 1e-5


class CamOutput(NamedTuple):
    """What the network says of a batch of images."""

    features: Tensor
    """(N, D, H, W) hierarchical feature: four levels, each of unit norm a cell, concatenated."""
    last: Tensor
    """(N, L, H, W) last level of the backbone."""
    cam: Tensor
    """(N, C-1, H, W) raw class activations."""
    scores: Tensor
    """(N, C-1) logits of the image-level labels: the mean of each activation map."""


class PrototypeOutput(NamedTuple):
    """Image-specific prototypes and the maps they give."""

    prototypes: Tensor
    """(N, C, D) mean feature of each class's seed; zero for classes that are not allowed or have no seed."""
    maps: Tensor
    """(N, C, H, W) cosine similarity to the prototype, negative values cut, zero for classes not allowed."""


class CamNetwork(nn.Module):
    """Backbone, classifier without bias on the last level, and one 1x1 side convolution a level.

    Args:
        backbone: Feature extractor.
        cam: Where gradients stop.
        num_classes: C, background included.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: BackboneConfig, cam: CamConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.frozen_norm = backbone.batch_norm == "frozen"
        self.detach_levels, self.detach_sides = backbone.detach_levels, cam.detach_sides
        channels = [int(info) for info in self.backbone.feature_info.channels()]  # pyright: ignore
        self.sides = nn.ModuleList(
            nn.Conv2d(level, side, 1, bias=False) for level, side in zip(channels, backbone.side_channels, strict=True)
        )
        self.classifier = nn.Conv2d(channels[-1], num_classes - 1, 1, bias=False)
        self.feature_dim = sum(backbone.side_channels)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1) * 255, persistent=False)
        self._freeze_shallow()

    def _freeze_shallow(self) -> None:
        """Parameters that no gradient can reach take no part in training (and in DDP's bookkeeping)."""
        if self.detach_levels == 0:
            return
        device_input = torch.zeros(1, 3, 64, 64)
        levels = self.backbone.eval()(device_input)
        frozen = torch.autograd.grad(
            levels[self.detach_levels - 1].sum(), list(self.backbone.parameters()), allow_unused=True
        )
        for parameter, gradient in zip(self.backbone.parameters(), frozen, strict=True):
            if gradient is not None:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> CamNetwork:
        """Switch to training; a frozen batch norm keeps its statistics."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: those of the backbone, and the new layers'."""
        new = [*self.sides.parameters(), *self.classifier.parameters()]
        return [p for p in self.backbone.parameters() if p.requires_grad], new

    def forward(self, images: Tensor) -> CamOutput:
        """Read a batch of images.

        Args:
            images: (N, 3, H', W') RGB, uint8.
        """
        pixels = (images.float() - self.mean) / self.std
        levels: list[Tensor] = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        cam = self.classifier(levels[-1])
        size = cam.shape[-2:]
        parts = []
        for index, (level, side) in enumerate(zip(levels, self.sides, strict=True)):
            stop = self.detach_sides or index < self.detach_levels
            part = side(level.detach() if stop else level).float()
            part = part / (part.norm(dim=1, keepdim=True) + EPSILON)
            parts.append(F.interpolate(part, size=size, mode="bilinear", align_corners=False))
        scores = cam.float().mean(dim=(2, 3))
        return CamOutput(torch.cat(parts, dim=1), levels[-1].float(), cam.float(), scores)


def class_maps(cam: Tensor, allowed: Tensor, mask_absent: bool = True) -> Tensor:
    """Scale activation maps to [0, 1] and put the background in front: 1 - max over the foreground.

    Args:
        cam: (N, C-1, H, W) raw activations.
        allowed: (N, C) bool, classes the image may hold, background first.
        mask_absent: Zero absent classes before the background is made; off as in SIPE's code.

    Returns:
        (N, C, H, W), zero for classes that are not allowed.
    """
    positive = F.relu(cam)
    scaled = normalise_maps(positive)
    allowed_NC11 = allowed[:, :, None, None].to(cam.dtype)
    if mask_absent:
        scaled = scaled * allowed_NC11[:, 1:]
    background = 1 - scaled.amax(dim=1, keepdim=True)
    return torch.cat([background, scaled], dim=1) * allowed_NC11


def normalise_maps(maps: Tensor) -> Tensor:
    """Divide each map (N, C, H, W) by its maximum."""
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + EPSILON)


def prototype_seeds(correlate: Tensor, maps: Tensor, allowed: Tensor, valid: Tensor, config: CamConfig) -> Tensor:
    """Give every cell to the class whose map agrees best with what the cell correlates with (SIPE section 3.2).

    A cell's correlation map with the image and a class map are compared by soft intersection over union.

    Args:
        correlate: (N, D, H, W) feature the correlation is taken on.
        maps: (N, C, H, W) from `class_maps`.
        allowed: (N, C) bool.
        valid: (N, H, W) bool, cells inside the image.
        config: Background factor b0 and whether to correlate.

    Returns:
        (N, C, H, W) one-hot over the allowed classes, zero outside `valid`.
    """
    valid_N1HW = valid[:, None].to(maps.dtype)
    score = maps * valid_N1HW
    if config.correlation != "none":
        feature_NDP = F.normalize(correlate.flatten(2).float(), dim=1)
        inside_N1P = valid_N1HW.flatten(2)
        relation_NPP = F.relu(feature_NDP.transpose(1, 2) @ feature_NDP) * inside_N1P
        map_NCP = score.flatten(2)
        common_NCP = map_NCP @ relation_NPP.transpose(1, 2)
        union_NCP = relation_NPP.sum(-1)[:, None] + map_NCP.sum(-1, keepdim=True) - common_NCP
        score = (common_NCP / union_NCP.clamp_min(EPSILON)).view_as(maps)
    factor = torch.ones(maps.shape[1], device=maps.device, dtype=maps.dtype)
    factor[0] = config.background_factor
    score = (score * factor[None, :, None, None]).masked_fill(~allowed[:, :, None, None], -1.0)
    one_hot = F.one_hot(score.argmax(dim=1), maps.shape[1]).permute(0, 3, 1, 2).to(maps.dtype)
    return one_hot * valid_N1HW


def prototype_maps(
    features: Tensor, correlate: Tensor, maps: Tensor, allowed: Tensor, valid: Tensor, config: CamConfig
) -> PrototypeOutput:
    """Mean feature of each class's seed in this image, and every cell's similarity to it (SIPE section 3.2).

    Args:
        features: (N, D, H, W) hierarchical feature; gradients reach it through prototypes and cells.
        correlate: (N, *, H, W) feature for `prototype_seeds`.
        maps: (N, C, H, W) from `class_maps`.
        allowed: (N, C) bool.
        valid: (N, H, W) bool.
        config: See `prototype_seeds`.
    """
    with torch.no_grad():
        seeds = prototype_seeds(correlate, maps, allowed, valid, config).flatten(2)
    feature_NDP = features.flatten(2)
    prototypes = seeds @ feature_NDP.transpose(1, 2) / seeds.sum(-1, keepdim=True).clamp_min(1)
    cosine = F.normalize(prototypes, dim=-1) @ F.normalize(feature_NDP, dim=1)
    similar = F.relu(cosine).view(maps.shape) * (allowed[:, :, None, None] & valid[:, None])
    return PrototypeOutput(prototypes, similar)


def correlation_feature(output: CamOutput, config: CamConfig) -> Tensor:
    """The feature that `prototype_seeds` correlates cells on."""
    return (output.last if config.correlation == "last" else output.features).detach()
