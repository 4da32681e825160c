"""Label maps as PASCAL VOC writes them: PNG with a palette, whose pixels are class indices."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image


@cache
def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC: bit b of the index goes to bit 7 - b//3 of channel b%3. Read-only.

    Returns:
        uint8 (256, 3), RGB; 0 (background) black, 255 (ignore) cream.

    Source: VOCcode/VOClabelcolormap.m of the VOC development kit.
    """
    index = np.arange(256)[:, None]
    channel = np.arange(3)
    colours = sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
    palette = np.asarray(colours, dtype=np.uint8)
    palette.setflags(write=False)
    return palette


def encode_palette_png(label_map: np.ndarray) -> bytes:
    """Encode a label map; the same map gives the same bytes.

    Args:
        label_map: uint8 (H, W), class indices, 255 = ignore.

    Raises:
        ValueError: If it is not uint8 of two dimensions.
    """
    if label_map.dtype != np.uint8 or label_map.ndim != 2:
        raise ValueError(
            f"label_map is {label_map.dtype} of shape {label_map.shape}: give uint8 (H, W) of class indices"
        )
    image = Image.fromarray(np.ascontiguousarray(label_map))
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
