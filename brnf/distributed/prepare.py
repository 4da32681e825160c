"""Prepare a split: tasks read and check images and write parts; the driver unites their reports in a manifest."""

from __future__ import annotations

import sys
import time
from typing import Any

import ray

from brnf.config import DataConfig
from brnf.data import storage
from brnf.data.records import Entry, Source, hash_values
from brnf.data.schema import MANIFEST, part_name
from brnf.data.shards import build_manifest, write_part
from brnf.data.sources import open_source
from brnf.distributed.session import session

REPORT_SECONDS = 10.0


def prepare(data: DataConfig, *, root: str, split: str, out: str) -> dict[str, Any]:
    """Write the shards of one split; goes on where a run over the same inputs stopped.

    Args:
        data: Kind of the data set and sizes of units and parts.
        root: VOCdevkit/VOC2012, or the folder of own images.
        split: Split of a VOC tree; own data is one split, whatever its name.
        out: Directory or URI of the shards.

    Returns:
        The manifest, which is written last.

    Raises:
        ValueError: If the tree or a list cannot be read, or no image is sound.
    """
    source = open_source(data, root=root, split=split)
    out = storage.absolute(out)
    storage.delete(storage.join(out, MANIFEST))
    entries, refused = source.list_entries()
    chunks = [entries[start : start + data.part_rows] for start in range(0, len(entries), data.part_rows)]
    with session():
        parts = _write_parts(source, chunks, out, data.unit_rows)
    manifest = build_manifest(source, split, parts, refused, data.unit_rows)
    if manifest["num_images"]:
        _check_visible(manifest, out)
        storage.write_json(storage.join(out, MANIFEST), manifest)
    for part in range(len(chunks)):
        storage.delete(storage.join(out, report_name(part)))
    if not manifest["num_images"]:
        reasons = "".join(f"\n  {row['file']}: {row['reason']}" for row in manifest["quarantine"][:5])
        raise ValueError(f"none of {len(manifest['quarantine'])} images under {root} can be used:{reasons}")
    return manifest


def report_name(part: int) -> str:
    """Name of the file that says that a part is complete; the manifest takes its place in the end."""
    return part_name(part).replace(".parquet", ".json")


def _write_parts(source: Source, chunks: list[list[Entry]], out: str, unit_rows: int) -> list[dict[str, Any]]:
    """Run one task a part, `write_part` says what it reports; complete parts are taken as they are."""
    inputs = source.fingerprint()
    shared = ray.put(source)
    keys = [hash_values(inputs, unit_rows, [entry.id for entry in chunk]) for chunk in chunks]
    waiting = [
        _prepare_part.remote(shared, chunk, out, part, unit_rows, key)
        for part, (chunk, key) in enumerate(zip(chunks, keys, strict=True))
    ]
    reports: list[dict[str, Any]] = []
    told = time.monotonic()
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=REPORT_SECONDS)
        reports += ray.get(ready)
        if time.monotonic() - told >= REPORT_SECONDS:
            told = time.monotonic()
            print(f"prepare: {len(reports)} of {len(chunks)} parts", file=sys.stderr, flush=True)
    return reports


@ray.remote(retry_exceptions=[OSError])  # pyright: ignore[reportArgumentType]  (Ray annotates bool, documents both)
def _prepare_part(
    source: Source, entries: list[Entry], out: str, part: int, unit_rows: int, key: str
) -> dict[str, Any]:
    """Write a part and then its report, unless a report with the same key is there."""
    path = storage.join(out, report_name(part))
    if storage.exists(path):
        report = storage.read_json(path)
        if report["key"] == key:
            return report
    report = {"key": key, **write_part(source, entries, out, part=part, unit_rows=unit_rows)}
    storage.write_json(path, report)
    return report


def _check_visible(manifest: dict[str, Any], out: str) -> None:
    """On a cluster a local path means another disk on every node; then parts are missing here."""
    missing = {part["name"] for part in manifest["parts"]} - set(storage.list_names(out))
    if missing:
        raise ValueError(
            f"--shards {out}: {len(missing)} parts were written by other nodes and are not to be seen from here; "
            "give a URI (s3://..., gs://...) or a disk that all nodes share"
        )
