"""Base seeds: a sidecar of the shards, same parts, same units, same row order, one stack of class scores a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from brnf.data import storage
from brnf.data.schema import SEED
from brnf.data.shards import Shards, Unit, read_manifest, read_row_group

STORED = np.dtype("<f2")


@dataclass(frozen=True)
class Seeds:
    """Base seeds of one split; `Seeds.open` makes it. Small and picklable."""

    path: str
    manifest: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def open(cls, path: str, shards: Shards) -> Seeds:
        """Open a directory or URI that `brnf seeds` wrote for these shards.

        Raises:
            ValueError: If it is not complete, or was made for other shards.
        """
        manifest = read_manifest(path, "seeds", "the same `brnf seeds` command again goes on where it stopped")
        if manifest["shards_hash"] != shards.content_hash:
            raise ValueError(
                f"{path} has seeds for other shards (content {manifest['shards_hash']}) than {shards.path} "
                f"(content {shards.content_hash}): make them with `brnf seeds --shards {shards.path}`"
            )
        return cls(storage.absolute(path), manifest)

    def read_unit(self, unit: Unit) -> pa.Table:
        """Read the seeds of a unit's rows (schema.SEED)."""
        return read_row_group(self.path, unit, SEED.names)


def encode_seed(keys: Sequence[int], scores: np.ndarray) -> dict[str, Any]:
    """Pack class scores into the fields of a row; its id is left to the caller.

    Args:
        keys: Class of each channel, background first.
        scores: Float (K, h, w) in [0, 1], over the whole image at any resolution.
    """
    scores = np.ascontiguousarray(scores, dtype=STORED)
    assert scores.ndim == 3 and len(keys) == len(scores), (len(keys), scores.shape)
    return {"keys": [int(key) for key in keys], "shape": list(scores.shape), "scores": scores.tobytes()}


def decode_seed(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the fields of a row.

    Returns:
        int16 (K,), the class of each channel, and float32 (K, h, w).
    """
    scores = np.frombuffer(row["scores"], STORED).reshape(row["shape"])
    return np.asarray(row["keys"], dtype=np.int16), scores.astype(np.float32)
