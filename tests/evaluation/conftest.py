"""A small split on disk: shards, base seeds and labels written by hand, after the schemas."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brnf.data import storage
from brnf.data.schema import FORMAT_VERSION, LABEL, SEED, SHARD, part_name, unit_name
from brnf.data.seeds import encode_seed
from brnf.data.shards import encode_rows
from brnf.data.transforms import decode_mask

CLASS_NAMES = ["background", "boat", "train", "cow"]
HEIGHT, WIDTH = 60, 90
UNIT_ROWS = 4


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@dataclass
class Split:
    """Images of one block of class 1 or 2 each, on its context."""

    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    hash: str = "one"

    @property
    def shards(self) -> str:
        return str(self.root / "shards")

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]

    def truth(self, row: dict[str, Any]) -> np.ndarray:
        return decode_mask(row["mask"])

    def write_shards(self, name: str = "val") -> None:
        parts = [self.rows[start : start + 2 * UNIT_ROWS] for start in range(0, len(self.rows), 2 * UNIT_ROWS)]
        for index, part in enumerate(parts):
            storage.write_bytes(f"{self.shards}/{part_name(index)}", encode_rows(part, SHARD, UNIT_ROWS))
        manifest = {
            "format_version": FORMAT_VERSION,
            "split": name,
            "class_names": CLASS_NAMES,
            "num_images": len(self.rows),
            "label_source": "xml",
            "masks": "SegmentationClass",
            "parts": [{"name": part_name(index)} for index in range(len(parts))],
            "units": [
                [index, group, min(UNIT_ROWS, len(part) - UNIT_ROWS * group)]
                for index, part in enumerate(parts)
                for group in range(-(-len(part) // UNIT_ROWS))
            ],
            "content_hash": self.hash,
        }
        storage.write_json(f"{self.shards}/manifest.json", manifest)

    def write_seeds(self) -> str:
        """Seeds that find the block, at an eighth of the resolution."""
        out = str(self.root / "seeds")
        rows = []
        for row in self.rows:
            found = cv2.resize((self.truth(row) > 0).astype(np.float32), (WIDTH // 8, HEIGHT // 8))
            rows.append({"id": row["id"], **encode_seed([0, *row["image_labels"]], np.stack([1 - found, found]))})
        for start in range(0, len(rows), 2 * UNIT_ROWS):
            part = encode_rows(rows[start : start + 2 * UNIT_ROWS], SEED, UNIT_ROWS)
            storage.write_bytes(f"{out}/{part_name(start // (2 * UNIT_ROWS))}", part)
        manifest = {"format_version": FORMAT_VERSION, "shards_hash": self.hash, "parts": []}
        storage.write_json(f"{out}/manifest.json", manifest)
        return out

    def write_labels(
        self, predict: Callable[[dict[str, Any]], np.ndarray | None], name: str = "labels", **manifest: Any
    ) -> str:
        """Labels by what `predict` gives for a row; none is an image in quarantine."""
        out, quarantine = str(self.root / name), []
        for start in range(0, len(self.rows), UNIT_ROWS):
            rows = []
            for row in self.rows[start : start + UNIT_ROWS]:
                label = predict(row)
                fields = {"id": row["id"], "width": WIDTH, "height": HEIGHT}
                fields |= {"error": "truncated"} if label is None else {"mask": png(label)}
                rows.append(fields)
                quarantine += [{"id": row["id"], "reason": "truncated"}] if label is None else []
            path = Path(out) / "parts" / unit_name(start // (2 * UNIT_ROWS), start // UNIT_ROWS % 2)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=LABEL), path)
        protocol = {"split": "val", "scales": [1.0, 0.5], "flip": True, "read_out": "prototype", "refinement": None}
        values = {"class_names": CLASS_NAMES, "shards_hash": self.hash, "protocol": protocol, "quarantine": quarantine}
        storage.write_json(f"{out}/manifest.json", values | manifest)
        return out


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Eleven images in three units of two parts, written as shards."""
    rng = np.random.default_rng(0)
    made = Split(tmp_path)
    for id in sorted((f"image{n}" for n in range(11)), key=lambda id: hashlib.sha256(id.encode()).digest()):
        label = int(rng.integers(1, 3))
        truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        top, left = (int(n) for n in rng.integers(5, 25, 2))
        truth[top : top + 30, left : left + 40] = label
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8) + np.uint8(80)
        image[truth > 0] += np.asarray([[90, 20, 0], [0, 60, 100]], np.uint8)[label - 1]
        image_labels, maps = [label], {"mask": png(truth), "context": png(np.full_like(truth, label))}
        sizes = {"width": WIDTH, "height": HEIGHT, "orientation": 1}
        made.rows.append({"id": id, "image": png(image), "image_labels": image_labels, **sizes, **maps})
    made.write_shards()
    return made
