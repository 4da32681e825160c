"""Label maps as brush regions of Label Studio, to be corrected by hand there."""

# R runs of equal pixels

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from brnf.data.palette import voc_palette
from brnf.data.schema import BACKGROUND, IGNORE_INDEX

TAG, IMAGE = "label", "image"
"""Names of the brush and of the image in the labelling configuration."""
CHANNELS = 4
"""A brush is stored as RGBA; all four are 255 where it painted."""
WORD_BITS = 8
LENGTH_BITS = np.array([3, 4, 8, 16])
"""A run states with two bits which of these widths its length is written in."""
HEADER_BITS = (32, 5, 4, 4, 4, 4)


def task(row: dict[str, Any], label_map: np.ndarray, class_names: list[str], image: str, model: str) -> dict[str, Any]:
    """One image with its label map as a prediction.

    Args:
        row: `id` and `mean_top_score` of the image.
        label_map: uint8 (H, W), class indices, 255 = ignore, which is left unpainted.
        class_names: Background first.
        image: Where Label Studio finds the image.
        model: What to call the maker of the prediction.
    """
    height, width = label_map.shape
    regions = [
        {
            "id": f"class-{c}",
            "type": "brushlabels",
            "from_name": TAG,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(label_map == c), "brushlabels": [class_names[c]]},
        }
        for c in np.unique(label_map).tolist()
        if c not in (BACKGROUND, IGNORE_INDEX)
    ]
    prediction = {"model_version": model, "score": row["mean_top_score"], "result": regions}
    return {"data": {IMAGE: image, "id": row["id"]}, "predictions": [prediction]}


def encode_brush(painted: np.ndarray) -> list[int]:
    """Run-length encoding of a brush, as bytes.

    Args:
        painted: bool (H, W).

    Source: the format of https://github.com/thi-ng/umbrella, packages/rle-pack, which Label Studio uses.
    """
    flat = painted.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths, values = np.diff(starts, append=flat.size) * CHANNELS, flat[starts] * np.int64(2**WORD_BITS - 1)
    lengths, values = _split(lengths, values, 1 << LENGTH_BITS[-1])
    width_index = np.searchsorted(1 << LENGTH_BITS, lengths)
    widths = LENGTH_BITS[width_index]
    codes = 1  # a run of one value
    for bits, field in ((2, width_index), (widths, lengths - 1), (WORD_BITS, values)):
        codes = codes << bits | field
    header = zip((flat.size * CHANNELS, WORD_BITS - 1, *(LENGTH_BITS - 1)), HEADER_BITS, strict=True)
    bits = [_bits(np.array([value]), np.array([width])) for value, width in header]
    return np.packbits(np.concatenate([*bits, _bits(codes, 3 + widths + WORD_BITS)])).tolist()


def _split(lengths_R: np.ndarray, values_R: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut runs that are too long into several."""
    pieces_R = -(-lengths_R // longest)
    last_R = lengths_R - (pieces_R - 1) * longest
    lengths = np.full(pieces_R.sum(), longest)
    lengths[pieces_R.cumsum() - 1] = last_R
    return lengths, values_R.repeat(pieces_R)


def _bits(codes_R: np.ndarray, widths_R: np.ndarray) -> np.ndarray:
    """Numbers written one after the other, each in as many bits as it is given, highest first."""
    ends_R = widths_R.cumsum()
    behind = ends_R.repeat(widths_R) - 1 - np.arange(ends_R[-1])
    return (codes_R.repeat(widths_R) >> behind & 1).astype(np.uint8)


def labelling_config(class_names: list[str]) -> str:
    """XML to paste into a project's labelling set-up: the classes in the colours of the palette PNGs."""
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(voc_palette()[index]).hex()}"/>\n'
        for index, name in enumerate(class_names)
        if index != BACKGROUND
    )
    brush = f'  <BrushLabels name="{TAG}" toName="{IMAGE}">\n{labels}  </BrushLabels>\n'
    return f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n{brush}</View>\n'
