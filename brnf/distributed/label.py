"""Labels and base seeds: a trained run read out over all images of a split.

Labels are committed by unit: PNGs first, then the unit's part file. Seeds become a sidecar: unit files first, from
which parts with the rows of the shards' are assembled. Either directory is complete when it has its manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray

from brnf.config import ComputeConfig, MasksConfig, ReadOutConfig
from brnf.data import storage
from brnf.data.schema import BACKGROUND, FORMAT_VERSION, IGNORE_INDEX, LABEL, MANIFEST, SEED, part_name, unit_name
from brnf.data.seeds import STORED, encode_seed
from brnf.data.shards import Shards, Unit, encode_rows
from brnf.distributed.read_out import COLUMNS, ReadOutJob, Writer
from brnf.distributed.runs import run_manifest
from brnf.distributed.session import session
from brnf.distributed.units import read_units
from brnf.export.voc_png import encode_palette_png
from brnf.inference.certainty import certainty
from brnf.inference.multiscale import Scores, label_map, map_weights
from brnf.inference.refiners import check_refiners, resize_maps

SEED_CELL = 4
"""Pixels of the image, along a side, that a pixel of its seed stands for."""
BACKGROUND_RULES = {
    "classifier": "1 - maximum over the foreground maps, competes in the argmax",
    "prototype": "has a prototype of its own, competes in the argmax",
    "posterior": "is a class of the mixture, competes in the argmax",
    "fusion": "is fused like every class, competes in the argmax",
}


def label(
    config: ReadOutConfig,
    compute: ComputeConfig,
    *,
    run: str,
    shards: str,
    out: str,
    masks: MasksConfig = MasksConfig(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """Write a mask for every image; goes on where it stopped, and ends with the same bytes.

    Args:
        config: How the run is read out.
        compute: Actors, device and precision.
        run: Finished run, of either method.
        shards: Split to label.
        out: Gets masks/{id}.png, scores/{id}.npz if they are kept, parts/ with one file a unit (schema.LABEL) and,
            last, manifest.json.
        masks: What becomes of the scores.

    Returns:
        The manifest. Its `quarantine` names each image that could not be labelled, with the reason.

    Raises:
        ValueError: If run and shards do not fit together, or the run cannot be read out like this.
    """
    out = storage.absolute(out)
    job = open_job((config,), compute, MaskWriter(out, masks), run=run, shards=shards)
    read_units(job, "label")
    manifest = describe(job, "labels") | {"protocol": protocol(job, config) | dataclasses.asdict(masks)}
    storage.write_json(storage.join(out, MANIFEST), manifest)
    return manifest


def make_seeds(config: ReadOutConfig, compute: ComputeConfig, *, run: str, shards: str, out: str) -> dict[str, Any]:
    """Write the base seed of every image as a sidecar of the shards; goes on where it stopped.

    An image that cannot be read gets a seed of zeros, that is, no guidance.

    Args:
        config: How the run is read out.
        compute: Actors, device and precision.
        run: Finished base run.
        shards: Split to make seeds for.
        out: Gets the same parts and rows as the shards (schema.SEED) and, last, manifest.json.

    Returns:
        The manifest. Its `quarantine` names each image without a seed, with the reason.

    Raises:
        ValueError: If run and shards do not fit together, or the run cannot be read out like this.
    """
    out = storage.absolute(out)
    path = storage.join(out, MANIFEST)
    job = open_job((config,), compute, SeedWriter(out), run=run, shards=shards)
    if not storage.exists(path):
        with session():
            read_units(job, "seeds")
            manifest = describe(job, "seeds") | {"protocol": protocol(job, config)}
            manifest |= {"parts": assemble(job.shards, job.writer.folder, out)}
        storage.write_json(path, manifest)
    storage.delete(job.writer.folder)  # after the manifest, which takes over what only they tell: the reasons
    return storage.read_json(path)


def open_job(
    configs: tuple[ReadOutConfig, ...], compute: ComputeConfig, writer: Writer, *, run: str, shards: str
) -> ReadOutJob:
    """Check that run, shards and ways of reading fit together.

    Raises:
        ValueError: If not.
    """
    run, opened = storage.absolute(run), Shards.open(shards)
    manifest = run_manifest(run)
    if tuple(manifest["class_names"]) != opened.class_names:
        raise ValueError(
            f"{run} knows the classes {', '.join(manifest['class_names'])}, but {shards} has "
            f"{', '.join(opened.class_names)}; give a run that was trained on the classes of these shards"
        )
    for config in configs:
        if manifest["method"] == "sipe" and "posterior" in map_weights(config):
            raise ValueError(
                f"maps is {config.maps!r}, but {run} is a base, without flow: give classifier or prototype"
            )
        check_refiners(config)
    return ReadOutJob(run=run, shards=opened, configs=configs, compute=compute, writer=writer)


@dataclass(frozen=True)
class MaskWriter:
    """Puts palette PNGs; the rows of a unit carry them too, so that tables can be read without a million files."""

    out: str
    config: MasksConfig = field(default_factory=MasksConfig)

    @property
    def folder(self) -> str:
        return storage.join(self.out, "parts")

    @property
    def schema(self) -> pa.Schema:
        return LABEL

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    def size(self, row: dict[str, Any]) -> tuple[int, int]:
        return row["height"], row["width"]

    def accept(self, row: dict[str, Any], readings: Sequence[Scores]) -> dict[str, Any]:
        [scores] = readings
        labels = label_map(scores)
        labels[scores.maps.amax(dim=0).cpu().numpy() < self.config.ignore_below] = IGNORE_INDEX
        mask = encode_palette_png(labels)
        storage.write_bytes(storage.join(self.out, "masks", f"{row['id']}.png"), mask)
        if self.config.keep_scores:
            storage.write_bytes(storage.join(self.out, "scores", f"{row['id']}.npz"), encode_scores(scores))
        figures = certainty(scores.maps)._asdict()
        return {"id": row["id"], "mask": mask, "width": row["width"], "height": row["height"], **figures, "error": None}

    def refuse(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        return {"id": row["id"], "width": row["width"], "height": row["height"], "error": reason}


def encode_scores(scores: Scores) -> bytes:
    """An .npz of `keys`, int16 (K,), and `scores`, float16 (K, h, w) at a quarter of the image's size."""
    size = tuple(-(-side // SEED_CELL) for side in scores.maps.shape[1:])
    smaller = resize_maps(scores.maps.cpu().numpy(), size)
    content = io.BytesIO()
    np.savez_compressed(content, keys=np.array(scores.keys, np.int16), scores=smaller.astype(STORED))
    return content.getvalue()


@dataclass(frozen=True)
class SeedWriter:
    """Keeps class scores at a quarter of the image's size."""

    out: str

    @property
    def folder(self) -> str:
        return storage.join(self.out, "units")

    @property
    def schema(self) -> pa.Schema:
        return SEED.append(LABEL.field("error"))

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    def size(self, row: dict[str, Any]) -> tuple[int, int]:
        return -(-row["height"] // SEED_CELL), -(-row["width"] // SEED_CELL)

    def accept(self, row: dict[str, Any], readings: Sequence[Scores]) -> dict[str, Any]:
        [scores] = readings
        return {"id": row["id"], **encode_seed(scores.keys, scores.maps.cpu().numpy()), "error": None}

    def refuse(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        return {"id": row["id"], **encode_seed([BACKGROUND], np.zeros((1, *self.size(row)))), "error": reason}


def describe(job: ReadOutJob, kind: str) -> dict[str, Any]:
    """What the manifest says once all units are committed. No times in it: restarts end with the same bytes."""
    quarantine = refused(job)
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "class_names": list(job.shards.class_names),
        "num_images": job.shards.num_images,
        "num_refused": len(quarantine),
        "shards_hash": job.shards.content_hash,
        "run_hash": hashlib.sha256(storage.read_bytes(storage.join(job.run, MANIFEST))).hexdigest()[:16],
        "quarantine": quarantine,
    }


def refused(job: ReadOutJob) -> list[dict[str, str]]:
    """Images that could not be read, in the order of the shards."""
    filesystem, inner = storage.open_location(job.writer.folder)
    paths = [storage.join(inner, unit_name(unit.part, unit.row_group)) for unit in job.shards.units]
    units = pads.dataset(paths, schema=job.writer.schema, filesystem=filesystem, format="parquet")
    rows = units.to_table(columns=["id", "error"], filter=pads.field("error").is_valid()).to_pylist()
    return [{"id": row["id"], "reason": row["error"]} for row in rows]


def protocol(job: ReadOutJob, config: ReadOutConfig) -> dict[str, Any]:
    """Everything that a score of what was read in this way has to be read with."""
    shards, run = job.shards.manifest, run_manifest(job.run)
    trained_with = run["config"]["cam"]["background_factor"]
    tags_from_masks = "masks" in shards["label_source"]  # the one source, or the counts of several
    return {
        "split": shards["split"],
        "method": run["method"],
        "initialisation": run["initialisation"],
        "read_out": config.maps,
        **({"fusion": map_weights(config)} if config.maps == "fusion" else {}),
        "scales": list(config.scales),
        "flip": config.flip,
        "long_side": config.long_side,
        "refinement": config.refine,
        **{name: dataclasses.asdict(getattr(config, name)) for name in config.refiners},
        "background_rule": BACKGROUND_RULES[config.maps],
        "background_factor": trained_with if config.background_factor is None else config.background_factor,
        **({"posterior_background": config.posterior_background} if "posterior" in map_weights(config) else {}),
        "classes_considered": "the image's own labels and background",
        "masks_used": "for the image's labels only" if tags_from_masks else "none",
        "precision": job.compute.precision,
    }


def assemble(shards: Shards, folder: str, out: str) -> list[dict[str, Any]]:
    """Write parts from unit files, row group by row group as in the shards.

    Returns:
        {name, rows, bytes, sha256} of each part.
    """
    return ray.get([_assemble_part.remote(units, folder, out) for units in units_by_part(shards)])


def units_by_part(shards: Shards) -> list[list[Unit]]:
    """The units of each part, in order."""
    by_part: dict[int, list[Unit]] = {}
    for unit in shards.units:
        by_part.setdefault(unit.part, []).append(unit)
    return list(by_part.values())


@ray.remote
def _assemble_part(units: list[Unit], folder: str, out: str) -> dict[str, Any]:
    """Write one part; the same unit files give the same bytes."""
    rows: list[dict[str, Any]] = []
    for unit in units:
        filesystem, inner = storage.open_location(storage.join(folder, unit_name(unit.part, unit.row_group)))
        rows += pq.read_table(inner, columns=SEED.names, filesystem=filesystem).to_pylist()
    name, content = part_name(units[0].part), encode_rows(rows, SEED, units[0].num_rows)
    storage.write_bytes(storage.join(out, name), content)
    return {"name": name, "rows": len(rows), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
