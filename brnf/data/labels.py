"""Reader of a label directory: one part file a unit, joined to anything else by image id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs

from brnf.data import storage
from brnf.data.schema import LABEL, MANIFEST


@dataclass(frozen=True)
class Labels:
    """The labels in a directory that `brnf label` completed. Holds ids only; masks are read when asked for."""

    path: str
    manifest: dict[str, Any]
    files: dict[str, str]
    """By image id, the part file that holds its mask."""
    quarantined: frozenset[str]
    """Ids of the images that could not be labelled, each named with its reason in the manifest."""

    @classmethod
    def open(cls, path: str) -> Labels:
        """Index a label directory.

        Raises:
            ValueError: If labelling has not been completed there.
        """
        if not storage.exists(storage.join(path, MANIFEST)):
            raise ValueError(f"{path} holds no complete labels; run `brnf label` with this --out to begin or to go on")
        manifest = storage.read_json(storage.join(path, MANIFEST))
        quarantined = frozenset(entry["id"] for entry in manifest["quarantine"])
        return cls(path, manifest, _index(storage.join(path, "parts")), quarantined)

    def masks(self, ids: Iterable[str]) -> dict[str, bytes]:
        """Encoded masks (palette PNG) of those of the images that have one, by id."""
        wanted = set(ids)
        found: dict[str, bytes] = {}
        for file in sorted({self.files[id] for id in wanted if id in self.files}):
            filesystem, inner = _within(self.path, file)
            for row in pq.read_table(inner, columns=["id", "mask"], filesystem=filesystem).to_pylist():
                if row["id"] in wanted and row["mask"] is not None:
                    found[row["id"]] = row["mask"]
        return found

    def read_part(self, file: str) -> pa.Table:
        """Rows (schema.LABEL) of a part file that have a mask."""
        filesystem, inner = _within(self.path, file)
        return pq.read_table(inner, schema=LABEL, filters=pads.field("error").is_null(), filesystem=filesystem)


def _index(parts: str) -> dict[str, str]:
    """Which file holds the mask of which image."""
    files = [name for name in storage.list_names(parts) if name.endswith(".parquet")]
    filesystem, inner = storage.open_location(parts)
    paths = [storage.join(inner, name) for name in files]
    dataset = pads.dataset(paths, schema=LABEL, filesystem=filesystem, format="parquet")
    rows = dataset.to_table(columns=["id", "__filename"], filter=pads.field("error").is_null())
    names = [path.rsplit("/", 1)[-1] for path in rows["__filename"].to_pylist()]
    return dict(zip(rows["id"].to_pylist(), names, strict=True))


def _within(path: str, file: str) -> tuple[fs.FileSystem, str]:
    return storage.open_location(storage.join(path, "parts", file))
