"""Reader of a directory of counts: what every image scored in each of several ways of reading a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as pads

from brnf.data import storage
from brnf.data.schema import COUNTS, MANIFEST

ROWS = 5
"""Hits, false pixels, missed pixels; context pixels labelled with their class, and all of them."""


@dataclass(frozen=True)
class Counts:
    """The images of a split that could be scored, in order of their ids."""

    ids: tuple[str, ...]
    pixels: np.ndarray
    """int64 (images, ways of reading, ROWS, classes)."""
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str) -> Counts:
        """Read all counts of a directory.

        Raises:
            ValueError: If scoring has not been completed there, or no image could be scored.
        """
        if not storage.exists(storage.join(path, MANIFEST)):
            raise ValueError(f"{path} holds no complete scores; the command that began them goes on when run again")
        manifest = storage.read_json(storage.join(path, MANIFEST))
        parts = storage.join(path, "parts")
        filesystem, inner = storage.open_location(parts)
        paths = [storage.join(inner, name) for name in storage.list_names(parts) if name.endswith(".parquet")]
        dataset = pads.dataset(paths, schema=COUNTS, filesystem=filesystem, format="parquet")
        table = dataset.to_table(columns=["id", "counts"], filter=pads.field("error").is_null()).sort_by("id")
        if not table.num_rows:
            raise ValueError(f"{path}: no image of this split could be scored; reasons in its {MANIFEST}")
        shape = (table.num_rows, len(manifest["read_outs"]), ROWS, len(manifest["class_names"]))
        values = table["counts"].combine_chunks().flatten().to_numpy()
        return cls(tuple(table["id"].to_pylist()), values.reshape(shape), manifest)
