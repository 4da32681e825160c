"""Shards: records as Parquet parts with a manifest, read unit by unit, and the plan of who reads what when.

A unit is one row group. Rows are in hash order of their ids, so any unit is a random sample of its split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brnf.data import storage
from brnf.data.records import Entry, Record, Refusal, Source
from brnf.data.schema import FORMAT_VERSION, MANIFEST, SHARD, part_name


@dataclass(frozen=True)
class Unit:
    """One row group: the atom of reading, shuffling, labelling, committing and resuming."""

    index: int
    """Counts over the whole split."""
    part: int
    row_group: int
    num_rows: int


@dataclass(frozen=True)
class Shards:
    """A prepared split; `Shards.open` makes it. Small and picklable: it holds the manifest and no rows."""

    path: str
    manifest: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def open(cls, path: str) -> Shards:
        """Open a directory or URI that `brnf prepare` wrote.

        Raises:
            ValueError: If it is not there, not complete, or of another format version.
        """
        manifest = read_manifest(path, "shards", "the same `brnf prepare` command again goes on where it stopped")
        return cls(storage.absolute(path), manifest)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, background first."""
        return tuple(self.manifest["class_names"])

    @property
    def num_classes(self) -> int:
        """Number of classes, the background included."""
        return len(self.manifest["class_names"])

    @property
    def num_images(self) -> int:
        """Number of rows."""
        return self.manifest["num_images"]

    @property
    def content_hash(self) -> str:
        """Hash of what the shards hold, wherever they lie."""
        return self.manifest["content_hash"]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units in the order of their rows."""
        return tuple(Unit(index, *unit) for index, unit in enumerate(self.manifest["units"]))

    def read_unit(self, unit: Unit, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one unit; the others are not touched."""
        assert set(columns) <= set(SHARD.names), columns
        return read_row_group(self.path, unit, columns)


def read_manifest(path: str, what: str, remedy: str) -> dict[str, Any]:
    """Read the manifest of a directory of parts and check that the directory is complete.

    Raises:
        ValueError: If there is no manifest, it is of another format version, or parts are missing.
    """
    file = storage.join(path, MANIFEST)
    if not storage.exists(file):
        raise ValueError(f"{path} holds no complete {what} (no {MANIFEST}): {remedy}")
    manifest = storage.read_json(file)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has {what} of format {version}, this brnf reads {FORMAT_VERSION}: make them anew")
    missing = {part["name"] for part in manifest["parts"]} - set(storage.list_names(path))
    if missing:
        raise ValueError(f"{path} lacks {min(missing)}, which its manifest names: delete {file}, then {remedy}")
    return manifest


def read_row_group(directory: str, unit: Unit, columns: Sequence[str]) -> pa.Table:
    """Read columns of the rows of one unit from shards, or from a sidecar with the same parts and rows."""
    filesystem, inner = storage.open_location(storage.join(directory, part_name(unit.part)))
    with filesystem.open_input_file(inner) as file, pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(unit.row_group, columns=list(columns))


def encode_rows(rows: list[dict[str, Any]], schema: pa.Schema, unit_rows: int) -> bytes:
    """Encode a part. The same rows give the same bytes; nothing is compressed, since images and masks are already."""
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        sink,
        row_group_size=unit_rows,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue()


def write_part(source: Source, entries: Iterable[Entry], out: str, *, part: int, unit_rows: int) -> dict[str, Any]:
    """Read entries and put those that are sound as one part.

    Returns:
        What the manifest needs to know: {part, name, rows, bytes, sha256, class_counts, label_sources, quarantine}.
        A part without a sound image is not written and has 0 rows.
    """
    records: list[Record] = []
    label_sources: Counter[str] = Counter()
    refused: list[Refusal] = []
    for entry in entries:
        try:
            record, label_source = source.read_record(entry)
        except ValueError as error:
            refused.append(Refusal(entry.id, entry.file, str(error)))
            continue
        records.append(record)
        label_sources[label_source] += 1
    name = part_name(part)
    content = encode_rows([vars(record) for record in records], SHARD, unit_rows) if records else b""
    if records:
        storage.write_bytes(storage.join(out, name), content)
    return {
        "part": part,
        "name": name,
        "rows": len(records),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "class_counts": dict(Counter(source.class_names[c] for record in records for c in record.image_labels)),
        "label_sources": dict(label_sources),
        "quarantine": [vars(refusal) for refusal in refused],
    }


def build_manifest(
    source: Source, split: str, parts: Sequence[dict[str, Any]], refused: Sequence[Refusal], unit_rows: int
) -> dict[str, Any]:
    """Unite what the parts report (`write_part`) with what was refused when the source was listed."""
    parts = sorted(parts, key=lambda part: part["part"])
    written = [part for part in parts if part["rows"]]
    counts = sum((Counter(part["class_counts"]) for part in parts), Counter())
    label_sources = sum((Counter(part["label_sources"]) for part in parts), Counter())
    checksums = [part["sha256"] for part in written]
    return {
        "format_version": FORMAT_VERSION,
        "kind": source.kind,
        "split": split,
        "class_names": list(source.class_names),
        "num_images": sum(part["rows"] for part in written),
        "label_source": next(iter(label_sources)) if len(label_sources) == 1 else dict(sorted(label_sources.items())),
        "masks": source.masks,
        "class_counts": {name: counts[name] for name in source.class_names[1:]},
        "parts": [{key: part[key] for key in ("name", "rows", "bytes", "sha256")} for part in written],
        "units": [unit for part in written for unit in _unit_rows(part["part"], part["rows"], unit_rows)],
        "quarantine": [vars(refusal) for refusal in refused] + [row for part in parts for row in part["quarantine"]],
        "content_hash": hashlib.sha256(json.dumps([source.class_names, checksums]).encode()).hexdigest()[:16],
    }


def _unit_rows(part: int, rows: int, unit_rows: int) -> list[list[int]]:
    """[part, row group, rows] of each unit of a part; the last one may be shorter."""
    return [[part, group, min(unit_rows, rows - start)] for group, start in enumerate(range(0, rows, unit_rows))]


def epoch_plan(
    unit_rows: Sequence[int], *, random_seed: int, epoch: int, batch_size: int, window_units: int
) -> np.ndarray:
    """Decide which rows make which global batch of an epoch, whatever the number of workers.

    Units are permuted, then rows within windows of `window_units` units. So a batch draws on a window's units only
    (two windows' where it spans their border), and yet mixes rows of all of them. Each row occurs once; the last
    rows that fill no batch are left out, other ones each epoch.

    Args:
        unit_rows: Rows of each unit, in the order of their indices.
        random_seed: Random seed of the run, 0 or more.
        epoch: Number of the epoch.
        batch_size: Images of a global batch.
        window_units: Units that rows are shuffled over.

    Returns:
        int32 (steps, batch_size, 2): unit index and row in the unit. The rows of a batch are sorted by unit, so
        that a rank's slice touches few of them.

    Raises:
        ValueError: If there are fewer images than a batch.
    """
    counts = np.asarray(unit_rows, dtype=np.int64)
    total = int(counts.sum())
    if total < batch_size:
        raise ValueError(f"batch_size is {batch_size}, but there are only {total} images: give {max(total, 1)} or less")
    rng = np.random.default_rng((random_seed, epoch))
    units = np.argsort(rng.random(len(counts)), kind="stable")
    counts = counts[units]
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    window = np.repeat(np.arange(len(units)) // window_units, counts)
    order = np.lexsort((rng.random(total), window))
    sequence = np.stack([np.repeat(units, counts), row], axis=1)[order]
    steps = total // batch_size
    batches = sequence[: steps * batch_size].reshape(steps, batch_size, 2)
    by_unit = np.lexsort((batches[..., 1], batches[..., 0]), axis=1)
    return np.take_along_axis(batches, by_unit[..., None], axis=1).astype(np.int32)


def rank_slice(plan: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The rows of one rank: the same contiguous stretch of every global batch.

    Args:
        plan: int32 (steps, batch_size, 2) from `epoch_plan`.
        rank: Which worker.
        world_size: Number of workers.

    Returns:
        int32 (steps, batch_size // world_size, 2).

    Raises:
        ValueError: If the batch does not divide among the workers.
    """
    share, rest = divmod(plan.shape[1], world_size)
    if rest:
        raise ValueError(f"batch_size is {plan.shape[1]}: give a multiple of the {world_size} workers")
    return plan[:, rank * share : (rank + 1) * share]
