"""From an encoded row to what the network sees: decode, resize, crop, flip; image, seed, mask and validity together.

Free functions of bytes and arrays, on numpy and OpenCV, called by the threads that collate batches.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from brnf.config import AugmentConfig
from brnf.data.schema import IGNORE_INDEX

cv2.setNumThreads(0)  # rows are decoded in parallel already; OpenCV's own threads would fight for the same cores

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"


def decode_image(encoded: bytes, orientation: int = 1) -> np.ndarray:
    """Decode a JPEG, PNG or whatever else OpenCV reads, refusing what is not all there.

    Greyscale is repeated, CMYK converted (taken as inverted, as Adobe and browsers do), 16 bits cut to 8, palettes
    looked up, alpha dropped. EXIF in the file is not looked at.

    Args:
        encoded: The file's bytes.
        orientation: EXIF orientation, 1 to 8, to apply.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: If the file is truncated or no image.
    """
    if encoded[:2] == JPEG_START and not _jpeg_ends(encoded):
        raise ValueError("truncated JPEG: its end marker is missing; fetch the file again")
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"not a readable image ({error.err or error})") from error
    if image is None:
        raise ValueError("truncated or not an image (JPEG, PNG, WebP, BMP and TIFF are read); fetch the file again")
    return orient(image, orientation)


def decode_mask(encoded: bytes, orientation: int = 1) -> np.ndarray:
    """Decode a mask of class indices: a palette PNG gives its indices, a greyscale one its values.

    By Pillow, since OpenCV gives the colours of a palette and not its indices.

    Args:
        encoded: The file's bytes.
        orientation: EXIF orientation, 1 to 8, to apply; the image's.

    Returns:
        uint8 (H, W).

    Raises:
        ValueError: If the file is truncated, no image, or holds colours instead of indices.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            mode, mask = file.mode, np.asarray(file)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"truncated or not a mask ({error})") from error
    if mask.ndim != 2:
        raise ValueError(f"a mask of mode {mode} holds colours; give class indices as a palette or greyscale PNG")
    if mask.size and mask.max() > IGNORE_INDEX:
        raise ValueError(f"a mask holds the value {mask.max()}; class indices end at {IGNORE_INDEX}")
    return orient(mask.astype(np.uint8), orientation)


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (H, W, ...) so that a file with this EXIF orientation (1 to 8) stands upright.

    Raises:
        ValueError: If there is no such orientation.
    """
    if not 1 <= orientation <= 8:
        raise ValueError(f"EXIF orientation is {orientation}; it has to be 1 to 8")
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def row_rng(random_seed: int, epoch: int, id: str) -> np.random.Generator:
    """The random numbers of one row in one epoch, whichever rank, thread or restart draws them."""
    digest = hashlib.sha256(f"{random_seed}/{epoch}/{id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class Augmented(NamedTuple):
    """An image and its companions after one and the same geometry. S is the crop's side, K channels."""

    image: np.ndarray
    """uint8 (S, S, 3)."""
    valid: np.ndarray
    """bool (cells, cells), cells = ceil(S / stride): true where every pixel of the cell comes from the image."""
    seed: np.ndarray | None
    """float32 (K, cells, cells): mean of the seed over the part of the cell inside the image, 0 where there is none."""
    mask: np.ndarray | None
    """uint8 (S, S), IGNORE_INDEX outside the image."""


def augment(
    image: np.ndarray,
    seed: np.ndarray | None,
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    stride: int,
    pad_color: tuple[int, int, int],
    mask: np.ndarray | None = None,
) -> Augmented:
    """Resize, crop and flip at random, the same for image, seed, mask and validity.

    The crop is cut before it is resized: its box has whole source pixels, so nothing outside it is ever computed.
    Where image and crop differ in size, the smaller lies anywhere within the larger.

    Args:
        image: uint8 (H, W, 3).
        seed: float (K, h, w) over the whole image at any resolution, or None.
        rng: Four numbers are drawn from it, whatever the configuration.
        config: Range of sizes, side of the crop, whether to flip.
        stride: Pixels a cell.
        pad_color: RGB around an image smaller than the crop.
        mask: uint8 (H, W), or None.

    Source: resize, crop and flip of SIPE (random_resize_long, random_crop, random_lr_flip).
    """
    height, width = image.shape[:2]
    low, high = config.resize_long
    scale = rng.integers(low, high, endpoint=True) / max(height, width)
    rows = Axis.place(height, scale, config.crop_size, rng.random())
    columns = Axis.place(width, scale, config.crop_size, rng.random(), mirrored=rng.random() < 0.5 and config.flip)
    # LINEAR skips pixels once it shrinks to less than half; AREA reads them all, for five times the time.
    interpolation = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    return Augmented(
        image=_resample(image, rows, columns, interpolation, pad_color),
        valid=np.outer(rows.covered(stride), columns.covered(stride)),
        seed=None if seed is None else _average(seed, rows, columns, stride),
        mask=None if mask is None else _resample(mask, rows, columns, cv2.INTER_NEAREST_EXACT, IGNORE_INDEX),
    )


@dataclass(frozen=True)
class Axis:
    """One axis of a crop: `source_size` pixels of the image from `source` become `target_size` pixels from `target`."""

    size: int
    """Pixels of the whole image."""
    crop: int
    """Pixels of the crop, S."""
    source: int
    source_size: int
    target: int
    target_size: int
    mirrored: bool

    @classmethod
    def place(cls, size: int, scale: float, crop: int, where: float, mirrored: bool = False) -> Axis:
        """Lay a crop over an image resized by `scale`; `where` in [0, 1) chooses among the possible places."""
        resized = max(1, round(size * scale))
        if resized <= crop:
            return cls(size, crop, 0, size, int(where * (crop - resized + 1)), resized, mirrored)
        source_size = min(size, max(1, round(crop / scale)))
        return cls(size, crop, int(where * (size - source_size + 1)), source_size, 0, crop, mirrored)

    def edges(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each cell begins and ends, in pixels of the crop before it is mirrored."""
        begin = np.arange(0, self.crop, stride)
        end = np.minimum(begin + stride, self.crop)
        return (self.crop - end, self.crop - begin) if self.mirrored else (begin, end)

    def covered(self, stride: int) -> np.ndarray:
        """Which cells lie wholly inside the image."""
        begin, end = self.edges(stride)
        return (begin >= self.target) & (end <= self.target + self.target_size)

    def averaging(self, stride: int, samples: int) -> np.ndarray:
        """Matrix (cells, samples) that averages `samples` equal stretches of the image over each cell."""
        sample_a_pixel = self.source_size / self.target_size * samples / self.size
        origin = self.source * samples / self.size
        last = origin + self.target_size * sample_a_pixel
        begin, end = (
            np.clip(origin + (edge - self.target) * sample_a_pixel, origin, last)[:, None]
            for edge in self.edges(stride)
        )
        left = np.arange(samples)
        overlap = np.clip(np.minimum(end, left + 1) - np.maximum(begin, left), 0, None)
        return (overlap / np.maximum(overlap.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _average(seed: np.ndarray, rows: Axis, columns: Axis, stride: int) -> np.ndarray:
    """Mean of (K, h, w) over the cells: exact for any resolution and any number of channels."""
    by_row = rows.averaging(stride, seed.shape[1])
    by_column = columns.averaging(stride, seed.shape[2])
    return by_row @ seed.astype(np.float32, copy=False) @ by_column.T


def _resample(
    array: np.ndarray, rows: Axis, columns: Axis, interpolation: int, fill: int | tuple[int, ...]
) -> np.ndarray:
    """Cut the box out of (H, W, ...), resize it and lay it on a crop filled with `fill`."""
    box = array[rows.source : rows.source + rows.source_size, columns.source : columns.source + columns.source_size]
    if columns.mirrored:
        box = np.ascontiguousarray(box[:, ::-1])
    resized = cv2.resize(box, (columns.target_size, rows.target_size), interpolation=interpolation)
    if resized.shape[:2] == (rows.crop, columns.crop):
        return resized
    left = columns.crop - columns.target - columns.target_size if columns.mirrored else columns.target
    crop = np.full((rows.crop, columns.crop, *array.shape[2:]), fill, np.uint8)
    crop[rows.target : rows.target + rows.target_size, left : left + columns.target_size] = resized
    return crop


def _jpeg_ends(encoded: bytes) -> bool:
    """Whether the end marker follows the first scan.

    OpenCV before 5 fills what is missing with grey. The header is stepped over since a thumbnail in it has an end
    marker of its own; bytes behind the end (cameras append some) do no harm.
    """
    at = 2
    while at + 4 <= len(encoded) and encoded[at + 1] != JPEG_SCAN:
        fill_byte = encoded[at + 1] == 0xFF
        at += 1 if fill_byte else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return encoded.find(JPEG_END, at) >= 0
