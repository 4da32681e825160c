"""Base seeds made of true masks: with them an ablation shows the most that guidance could give.

Not weakly supervised, and named so in the manifest; no recipe and no pipeline uses them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import cv2
import numpy as np
import ray

from brnf.data import storage
from brnf.data.schema import BACKGROUND, FORMAT_VERSION, MANIFEST, SEED, part_name
from brnf.data.seeds import encode_seed
from brnf.data.shards import Shards, Unit, encode_rows
from brnf.data.transforms import decode_mask
from brnf.distributed.label import SEED_CELL, units_by_part
from brnf.distributed.session import session


def make_true_seeds(*, shards: str, out: str) -> dict[str, Any]:
    """Write seeds that are 1 where the mask has the class, at a quarter of the image's size.

    Args:
        shards: Split with masks. An image without one gets a seed of zeros, that is, no guidance.
        out: Gets the same parts and rows as the shards (schema.SEED) and, last, manifest.json.

    Returns:
        The manifest. Its `quarantine` names each image without a mask.
    """
    out, opened = storage.absolute(out), Shards.open(shards)
    with session():
        written = ray.get([_write_part.remote(opened, units, out) for units in units_by_part(opened)])
    quarantine = [entry for _, refused in written for entry in refused]
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "seeds",
        "class_names": list(opened.class_names),
        "num_images": opened.num_images,
        "num_refused": len(quarantine),
        "shards_hash": opened.content_hash,
        "protocol": {"split": opened.manifest["split"], "source": "true masks"},
        "quarantine": quarantine,
        "parts": [part for part, _ in written],
    }
    storage.write_json(storage.join(out, MANIFEST), manifest)
    return manifest


@ray.remote
def _write_part(shards: Shards, units: list[Unit], out: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Write one part; returns what the manifest says of it, and its images without a mask."""
    rows, refused = [], []
    for unit in units:
        for row in shards.read_unit(unit, ["id", "mask", "orientation", "width", "height", "image_labels"]).to_pylist():
            if row["mask"] is None:
                refused.append({"id": row["id"], "reason": "the image has no mask"})
            rows.append({"id": row["id"], **true_seed(row)})
    name, content = part_name(units[0].part), encode_rows(rows, SEED, units[0].num_rows)
    storage.write_bytes(storage.join(out, name), content)
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "rows": len(rows), "bytes": len(content), "sha256": digest}, refused


def true_seed(row: dict[str, Any]) -> dict[str, Any]:
    """An image's mask as class scores: each cell's shares of its pixels, those to be ignored left out."""
    width, height = (-(-row[side] // SEED_CELL) for side in ("width", "height"))
    if row["mask"] is None:
        return encode_seed([BACKGROUND], np.zeros((1, height, width)))
    mask, keys = decode_mask(row["mask"], row["orientation"]), (BACKGROUND, *row["image_labels"])
    shares = np.stack(
        [cv2.resize((mask == key).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for key in keys]
    )
    return encode_seed(keys, shares / np.maximum(shares.sum(axis=0), 1e-6))
