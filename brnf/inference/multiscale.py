"""Class scores of an image from several sizes of it and its mirror image.

N images, C classes with background at 0, K classes read out (background first), H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.config import CamConfig, ReadOutConfig
from brnf.models.brnf import Brnf
from brnf.models.cam import CamOutput, class_maps, correlation_feature, normalise_maps, prototype_maps

SMALLEST_SIDE = 32
"""Pixels that a scaled image keeps on either side, so that it has a cell at any output stride."""
MOST_CELLS = 16384
"""Cells at the largest scale (2048 x 2048 pixels at stride 16): pixel correlation then takes 1 GB a copy."""
UNCERTAIN_MARGIN = 0.1


class Scores(NamedTuple):
    """What an image was read as."""

    keys: tuple[int, ...]
    """Class of each map, ascending: background, then the image's labels."""
    maps: Tensor
    """(K, H, W) float32 in [0, 1]."""


@torch.inference_mode()
def read_out(
    model: Brnf,
    image: np.ndarray,
    image_labels: Sequence[int],
    config: ReadOutConfig,
    *,
    stride: int,
    size: tuple[int, int] | None = None,
) -> Scores:
    """Read class scores of one image.

    Autocast of the caller reaches the network only.

    Args:
        model: In eval mode.
        image: uint8 (H, W, 3), RGB.
        image_labels: Indices of the classes in the image, without background.
        config: Scales, mirror image, which maps.
        stride: Pixels a cell, `backbone.output_stride` of the model.
        size: Height and width of the maps; None is the image's.

    Raises:
        ValueError: If the image is too large to be read at the scales asked for.

    Source: SIPE, make_cam of its public code, which reads prototype maps; SFC for fusing them with the classifier's.
    """
    keys = (0, *sorted(set(image_labels)))
    device = next(model.parameters()).device
    images_N3HW = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    allowed_NC = torch.zeros(1, model.num_classes, dtype=torch.bool, device=device)
    allowed_NC[:, list(keys)] = True
    weights = map_weights(config)
    cam = model.cam_config
    if config.background_factor is not None:
        cam = replace(cam, background_factor=config.background_factor)
    sizes = [scaled_size(image.shape[0], image.shape[1], scale, config.long_side, stride) for scale in config.scales]
    height, width = size or image.shape[:2]
    totals = {kind: torch.zeros(1, len(keys), height, width, device=device) for kind in weights}
    for scaled in sizes:
        # On the CPU: bytes are resized as bytes, averaging what a smaller image would skip.
        resized = F.interpolate(images_N3HW, scaled, mode="bilinear", antialias=True)
        maps = maps_at_one_scale(
            model, resized.to(device), allowed_NC, keys, cam, config.flip, tuple(weights), config.posterior_background
        )
        for kind, maps_NKhw in maps.items():
            totals[kind] += F.interpolate(maps_NKhw, (height, width), mode="bilinear", align_corners=False)
    parts = [
        weight * (totals[kind] / len(sizes) if kind == "posterior" else normalise_maps(totals[kind]))
        for kind, weight in weights.items()
    ]
    scores_NKHW = torch.stack(parts).sum(dim=0) / sum(weights.values())
    return Scores(keys, scores_NKHW[0].clamp(0, 1))


def map_weights(config: ReadOutConfig) -> dict[str, float]:
    """Which maps are read, with their weights; several only in the fusion."""
    if config.maps != "fusion":
        return {config.maps: 1.0}
    named = zip(("prototype", "classifier", "posterior"), config.fusion, strict=True)
    return {kind: weight for kind, weight in named if weight > 0}


def scaled_size(height: int, width: int, scale: float, long_side: int | None, stride: int) -> tuple[int, int]:
    """Height and width of an image at a scale: whole cells, so that those of image and mirror image coincide.

    Raises:
        ValueError: If there would be more than MOST_CELLS.
    """
    factor = scale * (long_side / max(height, width) if long_side else 1)
    rows, columns = (round(max(side * factor, SMALLEST_SIDE) / stride) for side in (height, width))
    if rows * columns > MOST_CELLS:
        raise ValueError(
            f"{width} x {height} pixels at scale {scale} make {rows * columns} cells, more than {MOST_CELLS}: "
            "give a long_side or smaller scales"
        )
    return rows * stride, columns * stride


def maps_at_one_scale(
    model: Brnf,
    images: Tensor,
    allowed: Tensor,
    keys: Sequence[int],
    config: CamConfig,
    flip: bool,
    kinds: Sequence[str],
    background_odds: float = 1.0,
) -> dict[str, Tensor]:
    """Read images of one size once.

    Args:
        model: In eval mode.
        images: (N, 3, H, W) uint8.
        allowed: (N, C) bool, background first.
        keys: K classes that hold all those allowed; the others are not computed.
        config: How maps are made of activations.
        flip: Average with the mirror image.
        kinds: Of classifier, prototype, posterior.
        background_odds: Prior odds of the background in the posterior.

    Returns:
        (N, K, h, w) a kind.
    """
    output = model.network(torch.cat([images, images.flip(3)]) if flip else images)
    if flip:
        features, last, cam = map(average_with_mirror, (output.features, output.last, output.cam))
        output = CamOutput(features, last, cam, output.scores.unflatten(0, (2, -1)).mean(0))
    with torch.autocast(images.device.type, enabled=False):
        maps = {"classifier": class_maps(output.cam, allowed, config.mask_absent)[:, keys]}
        if "prototype" in kinds:
            valid = torch.ones_like(output.cam[:, 0], dtype=torch.bool)
            correlate = correlation_feature(output, config)
            prototypes = prototype_maps(
                output.features, correlate, maps["classifier"], allowed[:, keys], valid, config
            )
            maps["prototype"] = normalise_maps(prototypes.maps)
        if "posterior" in kinds:
            maps["posterior"] = model.posterior(output.features, allowed, background_odds)[:, keys]
    return {kind: maps[kind] for kind in kinds}


def average_with_mirror(maps: Tensor) -> Tensor:
    """Average the first half of (2N, *, h, w) with the second, mirrored back."""
    straight, mirrored = maps.chunk(2)
    return (straight + mirrored.flip(3)) / 2


def label_map(scores: Scores) -> np.ndarray:
    """The best-scoring class of each pixel, uint8 (H, W)."""
    best = torch.tensor(scores.keys, dtype=torch.uint8)[scores.maps.argmax(dim=0).cpu()]
    return best.numpy()


def certainty(scores: Scores) -> tuple[float, float]:
    """Mean of the winning score, and share of pixels whose two best differ by less than UNCERTAIN_MARGIN."""
    best = scores.maps.topk(min(2, len(scores.keys)), dim=0).values
    margin = best[0] - best[1] if len(best) == 2 else torch.ones_like(best[0])
    return float(best[0].mean()), float((margin < UNCERTAIN_MARGIN).float().mean())
