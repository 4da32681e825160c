"""What a boundary network learns from: the class of each cell that base seeds and a dense CRF agree on.

A sidecar of the shards like the base seeds, written by part; a part's record is put after it, so that a restart does
only what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import ray

from brnf.config import IrnConfig
from brnf.data import storage
from brnf.data.schema import BACKGROUND, FORMAT_VERSION, IGNORE_INDEX, MANIFEST, SEED, part_name
from brnf.data.seeds import Seeds, decode_seed, encode_seed
from brnf.data.shards import Shards, Unit, encode_rows
from brnf.data.transforms import decode_image
from brnf.distributed.label import SEED_CELL, units_by_part
from brnf.distributed.session import session
from brnf.distributed.units import Progress
from brnf.inference.crf import crf, require_crf
from brnf.inference.refiners import resize_maps


def make_irn_labels(config: IrnConfig, *, shards: str, seeds: str, out: str) -> dict[str, Any]:
    """Write the classes of sure cells, one-hot at a quarter of the image's size and zero where unsure.

    Args:
        config: What makes a cell sure.
        shards: Split to train on.
        seeds: Its base seeds.
        out: Gets the same parts and rows as the shards (schema.SEED) and, last, manifest.json.

    Returns:
        The manifest. Its `quarantine` names each image without a sure cell because it has no seed or cannot be read.

    Raises:
        ValueError: If seeds and shards do not fit together, or the CRF's package is not installed.
    """
    out, opened = storage.absolute(out), Shards.open(shards)
    given, records = Seeds.open(seeds, opened), storage.join(out, "records")
    require_crf()
    parts = units_by_part(opened)
    with session():
        progress = Progress("irn: sure cells", opened.num_images, 0)
        for images, refused in _finished([_write_part.remote(opened, given, units, config, out) for units in parts]):
            progress.add(images, refused)
        progress.report()
    done = [storage.read_json(storage.join(records, f"{part_name(units[0].part)}.json")) for units in parts]
    quarantine = [entry for record in done for entry in record.pop("quarantine")]
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "irn labels",
        "class_names": list(opened.class_names),
        "num_images": opened.num_images,
        "num_refused": len(quarantine),
        "shards_hash": opened.content_hash,
        "protocol": {"split": opened.manifest["split"], "source": "base seeds and a dense CRF"},
        "quarantine": quarantine,
        "parts": done,
    }
    storage.write_json(storage.join(out, MANIFEST), manifest)
    storage.delete(records)
    return manifest


def _finished(tasks: list[ray.ObjectRef]) -> Iterator[Any]:
    """What tasks return, in the order in which they end."""
    while tasks:
        [done], tasks = ray.wait(tasks)
        yield ray.get(done)


@ray.remote
def _write_part(shards: Shards, seeds: Seeds, units: list[Unit], config: IrnConfig, out: str) -> tuple[int, int]:
    """Write one part and its record, unless they are there; returns its images, and how many have no sure cell."""
    name = part_name(units[0].part)
    path = storage.join(out, "records", f"{name}.json")
    if not storage.exists(path):
        storage.write_json(path, _make_part(shards, seeds, units, config, storage.join(out, name)))
    record = storage.read_json(path)
    return record["rows"], len(record["quarantine"])


def _make_part(shards: Shards, seeds: Seeds, units: list[Unit], config: IrnConfig, path: str) -> dict[str, Any]:
    """Write one part; returns what the manifest says of it."""
    rows, quarantine = [], []
    for unit in units:
        images = shards.read_unit(unit, ["id", "image", "orientation", "width", "height"]).to_pylist()
        for image, seed in zip(images, seeds.read_unit(unit).to_pylist(), strict=True):
            size = (-(-image["height"] // SEED_CELL), -(-image["width"] // SEED_CELL))
            keys, scores = decode_seed(seed)
            try:
                pixels = decode_image(image["image"], image["orientation"])
                if not scores.any():
                    raise ValueError("the image has no base seed")
            except ValueError as error:
                quarantine.append({"id": image["id"], "reason": str(error)})
                rows.append({"id": image["id"], **encode_seed([BACKGROUND], np.zeros((1, *size)))})
                continue
            sure = sure_cells(pixels, scores, size, config)
            rows.append({"id": image["id"], **encode_seed(keys.tolist(), sure)})
    content = encode_rows(rows, SEED, units[0].num_rows)
    storage.write_bytes(path, content)
    digest = hashlib.sha256(content).hexdigest()
    part = {"name": part_name(units[0].part), "rows": len(rows), "bytes": len(content), "sha256": digest}
    return part | {"quarantine": quarantine}


def sure_cells(image: np.ndarray, scores: np.ndarray, size: tuple[int, int], config: IrnConfig) -> np.ndarray:
    """Cells that are surely of a class: what a CRF calls foreground, and background even where it counts for less.

    Args:
        image: uint8 (H, W, 3).
        scores: float32 (K, h', w') at any size, background first.
        size: h and w of the cells.
        config: Factors on the background, and the CRF, whose kernels are in pixels of the image.

    Returns:
        float32 (K, h, w), one-hot, zero where unsure.

    Source: SIPE, cam2ir.py of its public code.
    """
    full = resize_maps(scores, image.shape[:2])

    def found(factor: float) -> np.ndarray:
        weights = np.ones((len(full), 1, 1), np.float32)
        weights[0] = factor
        return crf(image, full * weights, config.crf).argmax(axis=0)

    foreground, background = found(config.foreground_factor), found(config.background_factor)
    labels = np.where((foreground > 0) | (background == 0), foreground, IGNORE_INDEX).astype(np.uint8)
    cells = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return (cells == np.arange(len(full))[:, None, None]).astype(np.float32)
