"""The colours of PASCAL VOC, by which the tools of the field show class indices."""

from __future__ import annotations

from functools import cache

import numpy as np


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
