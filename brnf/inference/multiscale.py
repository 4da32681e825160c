"""Class scores of an image from several sizes of it and its mirror image.

N images, C classes with background at 0, K classes read out (background first), H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.config import ReadOutConfig
from brnf.models.brnf import Brnf
from brnf.models.cam import CamOutput, class_maps, correlation_feature, normalise_maps, prototype_maps
from brnf.models.mixture import weigh_background

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


class Layer(NamedTuple):
    """One kind of map, made in one way."""

    kind: str
    """classifier, prototype or posterior."""
    background: float
    """Background factor of the prototype CAM, prior odds of the background in the posterior, 1 for the classifier."""


def read_out(
    model: Brnf,
    image: np.ndarray,
    image_labels: Sequence[int],
    config: ReadOutConfig,
    *,
    stride: int,
    size: tuple[int, int] | None = None,
) -> Scores:
    """Read class scores of one image; `read_outs` with one way of reading."""
    return next(read_outs(model, image, image_labels, [config], stride=stride, size=size))


def read_outs(
    model: Brnf,
    image: np.ndarray,
    image_labels: Sequence[int],
    configs: Sequence[ReadOutConfig],
    *,
    stride: int,
    size: tuple[int, int] | None = None,
) -> Iterator[Scores]:
    """Read class scores of one image in several ways, with one pass of the network a scale.

    Autocast of the caller reaches the network only.

    Args:
        model: In eval mode.
        image: uint8 (H, W, 3), RGB.
        image_labels: Indices of the classes in the image, without background.
        configs: Scales, mirror image, which maps. Scales, flip and long_side are the same in all.
        stride: Pixels a cell, `backbone.output_stride` of the model.
        size: Height and width of the maps; None is the image's.

    Yields:
        The scores of each of `configs`.

    Raises:
        ValueError: If the image is too large to be read at the scales asked for.

    Source: SIPE, make_cam of its public code, which reads prototype maps; SFC for fusing them with the classifier's.
    """
    first = configs[0]
    assert all((c.scales, c.flip, c.long_side) == (first.scales, first.flip, first.long_side) for c in configs)
    weights = [layer_weights(config, model.cam_config.background_factor) for config in configs]
    layers = tuple(dict.fromkeys(layer for chosen in weights for layer in chosen))
    keys = (0, *sorted(set(image_labels)))
    sizes = [scaled_size(image.shape[0], image.shape[1], scale, first.long_side, stride) for scale in first.scales]
    totals = _sum_over_scales(model, image, keys, layers, sizes, first.flip, size or (image.shape[0], image.shape[1]))
    maps = {
        layer: total / len(sizes) if layer.kind == "posterior" else normalise_maps(total)
        for layer, total in totals.items()
    }
    for chosen in weights:
        scores_NKHW = torch.stack([weight * maps[layer] for layer, weight in chosen.items()]).sum(dim=0)
        yield Scores(keys, (scores_NKHW / sum(chosen.values()))[0].clamp(0, 1))


@torch.inference_mode()
def _sum_over_scales(
    model: Brnf,
    image: np.ndarray,
    keys: tuple[int, ...],
    layers: Sequence[Layer],
    sizes: Sequence[tuple[int, int]],
    flip: bool,
    size: tuple[int, int],
) -> dict[Layer, Tensor]:
    """Maps (1, K, H, W) of each layer, summed over scales."""
    device = next(model.parameters()).device
    images_N3HW = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    allowed_NC = torch.zeros(1, model.num_classes, dtype=torch.bool, device=device)
    allowed_NC[:, list(keys)] = True
    totals = {layer: torch.zeros(1, len(keys), *size, device=device) for layer in layers}
    for scaled in sizes:
        # On the CPU: bytes are resized as bytes, averaging what a smaller image would skip.
        resized = F.interpolate(images_N3HW, scaled, mode="bilinear", antialias=True)
        maps = maps_at_one_scale(model, resized.to(device), allowed_NC, keys, layers, flip)
        for layer, maps_NKhw in maps.items():
            totals[layer] += F.interpolate(maps_NKhw, size, mode="bilinear", align_corners=False)
    return totals


def map_weights(config: ReadOutConfig) -> dict[str, float]:
    """Which kinds of maps are read, with their weights; several only in the fusion."""
    if config.maps != "fusion":
        return {config.maps: 1.0}
    named = zip(("prototype", "classifier", "posterior"), config.fusion, strict=True)
    return {kind: weight for kind, weight in named if weight > 0}


def layer_weights(config: ReadOutConfig, trained_factor: float) -> dict[Layer, float]:
    """Which layers are read, with their weights, in a network that was trained with this background factor."""
    factor = trained_factor if config.background_factor is None else config.background_factor
    background = {"prototype": factor, "posterior": config.posterior_background, "classifier": 1.0}
    return {Layer(kind, background[kind]): weight for kind, weight in map_weights(config).items()}


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
    model: Brnf, images: Tensor, allowed: Tensor, keys: Sequence[int], layers: Sequence[Layer], flip: bool
) -> dict[Layer, Tensor]:
    """Read images of one size once.

    Args:
        model: In eval mode.
        images: (N, 3, H, W) uint8.
        allowed: (N, C) bool, background first.
        keys: K classes that hold all those allowed; the others are not computed.
        layers: Maps to make.
        flip: Average with the mirror image.

    Returns:
        (N, K, h, w) a layer.
    """
    output = model.network(torch.cat([images, images.flip(3)]) if flip else images)
    if flip:
        features, last, cam = map(average_with_mirror, (output.features, output.last, output.cam))
        output = CamOutput(features, last, cam, output.scores.unflatten(0, (2, -1)).mean(0))
    with torch.autocast(images.device.type, enabled=False):
        classifier = class_maps(output.cam, allowed, model.cam_config.mask_absent)[:, keys]
        correlate = correlation_feature(output, model.cam_config)
        valid = torch.ones_like(output.cam[:, 0], dtype=torch.bool)
        uniform = None
        maps = {}
        for layer in layers:
            if layer.kind == "classifier":
                maps[layer] = classifier
            elif layer.kind == "prototype":
                config = replace(model.cam_config, background_factor=layer.background)
                made = prototype_maps(output.features, correlate, classifier, allowed[:, keys], valid, config)
                maps[layer] = normalise_maps(made.maps)
            else:
                uniform = model.posterior(output.features, allowed) if uniform is None else uniform
                maps[layer] = weigh_background(uniform, layer.background)[:, keys]
    return maps


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
