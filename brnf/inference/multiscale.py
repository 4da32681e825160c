"""Class scores of images from several sizes of them and their mirror images.

N images, C classes with background at 0, K classes read out (background first), H W pixels, h w cells; M maps: one for
each class of the first image, then of the second, and so on.
"""

from __future__ import annotations

import math
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
MOST_PIXELS = 2**24
"""Pixels of the images read together: a map of each then takes 64 MB."""


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
    """Read class scores of one image in one way; `read_outs` of nothing more."""
    [[scores]] = read_outs(model, [image], [image_labels], [config], stride=stride, size=size)
    return scores


def read_outs(
    model: Brnf,
    images: Sequence[np.ndarray],
    image_labels: Sequence[Sequence[int]],
    configs: Sequence[ReadOutConfig],
    *,
    stride: int,
    size: tuple[int, int] | None = None,
) -> Iterator[list[Scores]]:
    """Read class scores of images of one size in several ways, with one pass of the network a scale.

    Autocast of the caller reaches the network only.

    Args:
        model: In eval mode.
        images: N of uint8 (H, W, 3), RGB, of one size.
        image_labels: For each image, indices of the classes in it, without background.
        configs: Scales, mirror image, which maps. Scales, flip and long_side are the same in all.
        stride: Pixels a cell, `backbone.output_stride` of the model.
        size: Height and width of the maps; None is the images'.

    Yields:
        For each image, its scores in each of `configs`.

    Raises:
        ValueError: If the images are too large to be read at the scales asked for.

    Source: SIPE, make_cam of its public code, which reads prototype maps; SFC for fusing them with the classifier's.
    """
    first, (height, width) = configs[0], images[0].shape[:2]
    assert all((c.scales, c.flip, c.long_side) == (first.scales, first.flip, first.long_side) for c in configs)
    weights = [layer_weights(config, model.cam_config.background_factor) for config in configs]
    layers = tuple(dict.fromkeys(layer for chosen in weights for layer in chosen))
    keys = [(0, *sorted(set(labels))) for labels in image_labels]
    sizes = [scaled_size(height, width, scale, first.long_side, stride) for scale in first.scales]
    totals = _sum_over_scales(model, np.stack(images), keys, layers, sizes, first.flip, size or (height, width))
    maps = {
        layer: (total_M1HW / len(sizes) if layer.kind == "posterior" else normalise_maps(total_M1HW))[:, 0]
        for layer, total_M1HW in totals.items()
    }
    end = 0
    for own in keys:
        start, end = end, end + len(own)
        yield [Scores(own, _weighted_mean(chosen, maps, slice(start, end))) for chosen in weights]


def _weighted_mean(weights: dict[Layer, float], maps: dict[Layer, Tensor], of: slice) -> Tensor:
    """Fuse an image's maps (K, H, W), which are a slice of those of all images."""
    weighted = torch.stack([weight * maps[layer][of] for layer, weight in weights.items()])
    return (weighted.sum(dim=0) / sum(weights.values())).clamp(0, 1)


@torch.inference_mode()
def _sum_over_scales(
    model: Brnf,
    images: np.ndarray,
    keys: Sequence[tuple[int, ...]],
    layers: Sequence[Layer],
    sizes: Sequence[tuple[int, int]],
    flip: bool,
    size: tuple[int, int],
) -> dict[Layer, Tensor]:
    """Maps (M, 1, H, W) of each layer, summed over scales."""
    device = next(model.parameters()).device
    images_N3HW = torch.from_numpy(images).permute(0, 3, 1, 2)
    known = sorted({key for own in keys for key in own})
    image_M = torch.tensor([image for image, own in enumerate(keys) for _ in own], device=device)
    place_M = torch.tensor([known.index(key) for own in keys for key in own], device=device)
    allowed_NC = torch.zeros(len(images), model.num_classes, dtype=torch.bool, device=device)
    for allowed_C, own in zip(allowed_NC, keys, strict=True):
        allowed_C[list(own)] = True
    totals = {layer: torch.zeros(len(image_M), 1, *size, device=device) for layer in layers}
    for scaled in sizes:
        # On the CPU: bytes are resized as bytes, averaging what a smaller image would skip.
        resized = F.interpolate(images_N3HW, scaled, mode="bilinear", antialias=True)
        maps = maps_at_one_scale(model, resized.to(device), allowed_NC, known, layers, flip)
        for layer, maps_NKhw in maps.items():
            own_M1hw = maps_NKhw[image_M, place_M][:, None]
            totals[layer] += F.interpolate(own_M1hw, size, mode="bilinear", align_corners=False)
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
    rows, columns = _cells(height, width, scale, long_side, stride)
    if rows * columns > MOST_CELLS:
        raise ValueError(
            f"{width} x {height} pixels at scale {scale} make {rows * columns} cells, more than {MOST_CELLS}: "
            "give a long_side or smaller scales"
        )
    return rows * stride, columns * stride


def most_images(height: int, width: int, config: ReadOutConfig, stride: int) -> int:
    """How many images of a size to read together at the most, 1 or more.

    Pixel correlation of all takes no more memory than that of one image with MOST_CELLS, their maps no more than that
    of one with MOST_PIXELS. An image that is too large to be read is alone.
    """
    cells = max(math.prod(_cells(height, width, scale, config.long_side, stride)) for scale in config.scales)
    return max(1, min((MOST_CELLS // cells) ** 2, MOST_PIXELS // (height * width)))


def _cells(height: int, width: int, scale: float, long_side: int | None, stride: int) -> tuple[int, int]:
    """Rows and columns of cells of an image at a scale."""
    factor = scale * (long_side / max(height, width) if long_side else 1)
    rows, columns = (round(max(side * factor, SMALLEST_SIDE) / stride) for side in (height, width))
    return rows, columns


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
    inputs = torch.cat([images, images.flip(3)]) if flip else images
    # One by one on the CPU: activations of two fit neither its caches nor the blocks that malloc keeps for reuse.
    passes = [model.network(part) for part in inputs.split(1 if inputs.device.type == "cpu" else len(inputs))]
    output = CamOutput(*map(torch.cat, zip(*passes, strict=True)))
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
    best = scores.maps.max(dim=0).indices.cpu()  # as argmax, which takes ten times as long over the first dimension
    return torch.tensor(scores.keys, dtype=torch.uint8)[best].numpy()
