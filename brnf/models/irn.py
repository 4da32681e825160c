"""Boundaries of objects and displacements to their centres, read off a backbone that does not learn.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN), CVPR 2019,
section 4.1; sizes of its public code (jiwoon-ahn/irn). It reads the stem as a level of its own, here there are the
four levels of `build_backbone`.

N images, D channels, H W cells of STRIDE pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brnf.config import BackboneConfig, require
from brnf.models.backbones import build_backbone

STRIDE = 4
"""Pixels of the image that a cell stands for."""
BOUNDARY_CHANNELS = 32
SHALLOW_CHANNELS, DEEP_CHANNELS = 128, 256
"""Of the displacement: of the shallowest level, and of the others and all together."""


class Field(NamedTuple):
    """What the network says of a batch of images."""

    boundary: Tensor
    """(N, H, W) logits."""
    displacement: Tensor
    """(N, 2, H, W), from the cell to the centre of its object, rows and columns, in cells."""


class MeanShift(nn.Module):
    """Takes the mean over all cells of a data set from a displacement field; losses leave it open.

    The mean is exact, whatever the batches: sums and counts are kept.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, dtype=torch.double))
        self.register_buffer("count", torch.zeros((), dtype=torch.double))

    @torch.no_grad()
    def update(self, total: Tensor, count: Tensor) -> None:
        """Take in the sum (2,) of the displacements of `count` cells."""
        self.total += total
        self.count += count

    def forward(self, displacement: Tensor) -> Tensor:
        """Shift a field (N, 2, H, W)."""
        mean = self.total / self.count.clamp_min(1)
        return displacement - mean.to(displacement.dtype).view(2, 1, 1)


class BoundaryNetwork(nn.Module):
    """A frozen backbone with two heads; in evaluation mode the displacement has its mean taken out.

    Args:
        backbone: Feature extractor.

    Raises:
        ValueError: If its shallowest level is not at STRIDE.
    """

    mean: Tensor
    std: Tensor
    frozen_norm = True

    def __init__(self, backbone: BackboneConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone).requires_grad_(False)
        strides = [int(stride) for stride in self.backbone.feature_info.reduction()]  # pyright: ignore
        channels = [int(count) for count in self.backbone.feature_info.channels()]  # pyright: ignore
        remedy = f"give one whose fourth level from the end is at stride {STRIDE}, not {strides[0]}, such as resnet50"
        require(strides[0] == STRIDE, "backbone.name", backbone.name, remedy)
        self.boundary_head = BoundaryHead(channels, strides)
        self.displacement_head = DisplacementHead(channels, strides)
        self.mean_shift = MeanShift()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1) * 255, persistent=False)

    def train(self, mode: bool = True) -> BoundaryNetwork:
        """Switch to training; the backbone stays as it is."""
        super().train(mode)
        self.backbone.eval()
        return self

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: those of the boundary, and those of the displacement."""
        return list(self.boundary_head.parameters()), list(self.displacement_head.parameters())

    def forward(self, images: Tensor) -> Field:
        """Read a batch of images.

        Args:
            images: (N, 3, H', W') RGB, uint8.
        """
        pixels = (images.float() - self.mean) / self.std
        levels: list[Tensor] = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        displacement = self.displacement_head(levels).float()
        return Field(
            self.boundary_head(levels).float(), displacement if self.training else self.mean_shift(displacement)
        )

    @torch.no_grad()
    def boundary(self, image: np.ndarray) -> np.ndarray:
        """Find boundaries: the sigmoid of the mean logit of the image and its mirror image (IRN).

        Args:
            image: uint8 (H', W', 3) RGB.

        Returns:
            float32 (H, W) in [0, 1], H and W a quarter of the image's, rounded up.
        """
        rest = -image.shape[1] % STRIDE  # mirrored cells should lie on cells
        pixels_HWC = torch.from_numpy(np.pad(image, ((0, 0), (0, rest), (0, 0)), mode="edge")).to(self.mean.device)
        pixels_CHW = pixels_HWC.permute(2, 0, 1)
        both_NHW = self(torch.stack([pixels_CHW, pixels_CHW.flip(-1)])).boundary
        return torch.sigmoid((both_NHW[0] + both_NHW[1].flip(-1)) / 2).cpu().numpy()


class BoundaryHead(nn.Module):
    """One map a level, all brought to the shallowest, one logit a cell.

    Args:
        channels: Of each level, shallow to deep.
        strides: Of each level.
    """

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            Enlarged(level, BOUNDARY_CHANNELS, 4, stride // strides[0])
            for level, stride in zip(channels, strides, strict=True)
        )
        self.logit = nn.Conv2d(BOUNDARY_CHANNELS * len(channels), 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Logits (N, H, W)."""
        return self.logit(gather_levels(self.levels, levels))[:, 0]


class DisplacementHead(nn.Module):
    """Deep levels are brought to the second, merged, brought to the shallowest and merged with it.

    Args:
        channels: Of each level, shallow to deep.
        strides: Of each level.
    """

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.deep = nn.ModuleList(
            Enlarged(level, DEEP_CHANNELS, 16, stride // strides[1])
            for level, stride in zip(channels[1:], strides[1:], strict=True)
        )
        self.shallow = Enlarged(channels[0], SHALLOW_CHANNELS, 16, 1)
        self.merged = Enlarged(DEEP_CHANNELS * len(self.deep), DEEP_CHANNELS, 16, strides[1] // strides[0])
        self.last = Enlarged(SHALLOW_CHANNELS + DEEP_CHANNELS, DEEP_CHANNELS, 16, 1)
        self.step = nn.Conv2d(DEEP_CHANNELS, 2, 1, bias=False)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The field (N, 2, H, W)."""
        deep = gather_levels(self.deep, levels[1:])
        return self.step(self.last(gather_levels([self.shallow, self.merged], [levels[0], deep])))


class Enlarged(nn.Sequential):
    """1x1 convolution, group norm, enlargement, ReLU.

    Args:
        channels: D of the input.
        out: D of the output.
        groups: Of channels that are normalised together.
        factor: Of enlargement.
    """

    def __init__(self, channels: int, out: int, groups: int, factor: int) -> None:
        larger = [nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)] if factor > 1 else []
        super().__init__(nn.Conv2d(channels, out, 1, bias=False), nn.GroupNorm(groups, out), *larger, nn.ReLU())


def gather_levels(branches: Iterable[nn.Module], levels: Iterable[Tensor]) -> Tensor:
    """Put each level through its branch, cut all to the size of the first, concatenate.

    A level's last cell may reach beyond the image; enlarging by whole factors and cutting keeps cells where they are.
    """
    found = [branch(level) for branch, level in zip(branches, levels, strict=True)]
    height, width = found[0].shape[-2:]
    return torch.cat([part[..., :height, :width] for part in found], dim=1)
