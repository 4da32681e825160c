"""Pictures to judge labels by: an image beside its base seed, labels and mask, drawn by hash and not by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from brnf.data.labels import Labels
from brnf.data.palette import voc_palette
from brnf.data.schema import BACKGROUND, IGNORE_INDEX
from brnf.data.seeds import Seeds, decode_seed
from brnf.data.shards import Shards
from brnf.data.transforms import decode_image, decode_mask

LONG_SIDE = 320
"""Pixels; a report of a dozen rows stays near two megabytes."""
VEIL = 0.6
"""Opacity of class colours over the image."""


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """One image with whatever there is of its class maps, all of one size."""

    id: str
    tags: dict[str, int]
    """Class index by name, of the image's tags."""
    image: np.ndarray
    """uint8 (H, W, 3), RGB."""
    base_seed: np.ndarray | None = None
    """uint8 (H, W), class indices; so are the three below."""
    base_label: np.ndarray | None = None
    label: np.ndarray | None = None
    mask: np.ndarray | None = None


def gallery_rows(
    shards: str, base_labels: str | None, labels: str | None, seeds: str | None, count: int = 12
) -> list[GalleryRow]:
    """Collect the first images of a split that have all that is asked for.

    Rows of shards are in hash order of their ids, so the first are a random sample, the same every time.

    Args:
        shards: Directory of shards.
        base_labels: Labels of the base network for these images, or none.
        labels: Labels of BRNF for these images, or none.
        seeds: Base seeds of these shards, or none.
        count: Most rows.

    Raises:
        ValueError: If a directory is incomplete or the seeds are of other shards.
    """
    opened = Shards.open(shards)
    rows = _rows(
        opened,
        Labels.open(base_labels) if base_labels else None,
        Labels.open(labels) if labels else None,
        Seeds.open(seeds, opened) if seeds else None,
    )
    return list(itertools.islice(rows, count))


def _rows(
    shards: Shards, base_labels: Labels | None, labels: Labels | None, seeds: Seeds | None
) -> Iterator[GalleryRow]:
    """Every image of which all that was given has something to show."""
    for unit in shards.units:
        rows = shards.read_unit(unit, ["id", "image", "mask", "image_labels", "orientation"]).to_pylist()
        ids = [row["id"] for row in rows]
        given = {}
        if base_labels:
            given["base_label"] = base_labels.masks(ids)
        if labels:
            given["label"] = labels.masks(ids)
        if seeds:
            given["base_seed"] = {seed["id"]: seed for seed in seeds.read_unit(unit).to_pylist()}
        for row in rows:
            if all(row["id"] in found for found in given.values()):
                found = {name: found[row["id"]] for name, found in given.items()}
                yield _gallery_row(row, shards.class_names, **found)


def _gallery_row(
    row: dict[str, Any],
    class_names: tuple[str, ...],
    base_seed: dict[str, Any] | None = None,
    base_label: bytes | None = None,
    label: bytes | None = None,
) -> GalleryRow:
    """Decode the pictures of one image and bring them to one size."""
    image = decode_image(row["image"], row["orientation"])
    scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))

    def fit(encoded: bytes | None, orientation: int = 1) -> np.ndarray | None:
        if encoded is None:
            return None
        return cv2.resize(decode_mask(encoded, orientation), size, interpolation=cv2.INTER_NEAREST)

    return GalleryRow(
        id=row["id"],
        tags={class_names[index]: index for index in row["image_labels"]},
        image=cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        base_seed=None if base_seed is None else _winner(base_seed, size),
        base_label=fit(base_label),
        label=fit(label),
        mask=fit(row["mask"], row["orientation"]),
    )


def _winner(seed: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Class with the highest score of a base seed at each pixel of a picture of (width, height): uint8 (H, W)."""
    keys, scores = decode_seed(seed)
    fine = np.stack([cv2.resize(score, size, interpolation=cv2.INTER_LINEAR) for score in scores])
    return keys[fine.argmax(axis=0)].astype(np.uint8)


def paint(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Lay the colours of a class map over a greyed image, outlined; background stays bare, ignore turns white.

    Args:
        image: uint8 (H, W, 3), RGB.
        classes: uint8 (H, W), class indices and 255.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colors = voc_palette()[classes]
    colors[classes == IGNORE_INDEX] = 255
    covered = (classes != BACKGROUND)[..., None]
    painted = np.where(covered, (1 - VEIL) * grey + VEIL * colors, grey).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    edge = (cv2.dilate(classes, kernel) != cv2.erode(classes, kernel)) & (classes != BACKGROUND)
    painted[edge] = colors[edge]
    return painted
