"""Palette PNGs as PASCAL VOC writes them."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from brnf.data.palette import voc_palette
from brnf.export.voc_png import encode_palette_png


def test_palette_has_the_colours_of_the_development_kit() -> None:
    known = {
        0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128),
        16: (0, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192),
    }
    assert {index: tuple(voc_palette()[index].tolist()) for index in known} == known
    assert len({tuple(colour) for colour in voc_palette().tolist()}) == 256


def test_pixels_are_indices_and_colours_are_shown() -> None:
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    encoded = encode_palette_png(label_map)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), label_map)
    shown = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    np.testing.assert_array_equal(shown[..., ::-1], voc_palette()[label_map])


def test_same_map_gives_same_bytes_whatever_its_memory_layout() -> None:
    label_map = np.random.default_rng(0).integers(0, 21, (37, 53), dtype=np.uint8)
    assert encode_palette_png(label_map) == encode_palette_png(np.asfortranarray(label_map))


@pytest.mark.parametrize("label_map", [np.zeros((4, 4), np.int64), np.zeros((4, 4, 3), np.uint8)])
def test_refuses_what_is_no_label_map(label_map: np.ndarray) -> None:
    with pytest.raises(ValueError, match="label_map"):
        encode_palette_png(label_map)
