"""Label maps as PASCAL VOC writes them: PNG with a palette, whose pixels are class indices."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from brnf.data.palette import voc_palette


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
