"""Everything brnf writes to disk, in one place: Arrow schemas and the names of files.

Three tables share the same parts (files), units (row groups) and row order: shards, seeds and foreign
masks. Labels are written one file a unit. Readers project columns: training never reads `mask`.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1
IGNORE_INDEX = 255
BACKGROUND = 0

MANIFEST = "manifest.json"
"""What a directory holds. Written when the directory is complete."""
CONFIG = "config.json"
"""The resolved configuration, its hash and the code version that made the directory."""
DONE = "done.json"
"""The stage's key (inputs, configuration, stage version). Written last: its presence means complete."""

SHARD = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # encoded as delivered (JPEG, PNG)
        pa.field("width", pa.int32(), nullable=False),  # after `orientation` has been applied
        pa.field("height", pa.int32(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),  # EXIF 1..8 to apply to image and mask; 1 = as stored
        pa.field("image_labels", pa.list_(pa.int16()), nullable=False),  # sorted class indices, background excluded
        pa.field("mask", pa.binary()),  # PNG uint8, class index a pixel, 255 = ignore; null where there is none
        pa.field("context", pa.binary()),  # PNG uint8, index of the class this ground goes with; sample only
    ]
)

SEED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("keys", pa.list_(pa.int16()), nullable=False),  # class of each channel; 0 (background) first
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),  # channels, height, width of `scores`
        pa.field("scores", pa.binary(), nullable=False),  # float16, C order, values in [0, 1]
    ]
)

LABEL = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("mask", pa.binary()),  # palette PNG; null where `error` says why there is none
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("mean_top_score", pa.float32()),  # mean over pixels of the winning score, in [0, 1]
        pa.field("uncertain_share", pa.float32()),  # share of pixels whose two best scores differ by < 0.1
        pa.field("entropy", pa.float32()),  # mean over pixels, of the most there could be, in [0, 1]
        pa.field("error", pa.string()),  # null, or why this image was not labelled
    ]
)

COUNTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("counts", pa.list_(pa.int64())),  # (ways of reading, 5, classes) in C order: hits, false and missed
        # pixels, context pixels labelled with their class, context pixels; null where `error` says why
        pa.field("error", pa.string()),
    ]
)
"""What an image scored in each of several ways of reading."""


def part_name(part: int) -> str:
    """Name of part `part` of shards, seeds and foreign masks alike."""
    return f"part-{part:05d}.parquet"


def unit_name(part: int, row_group: int) -> str:
    """Name of the file one unit is committed as."""
    return f"unit-{part:05d}-{row_group:03d}.parquet"
