"""A data set of any size: photographs of a folder, as often as it takes, under new ids. A module of its own, since
processes that write its shards import it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brnf.data import storage
from brnf.data.records import Entry, Record, Refusal
from brnf.data.schema import MANIFEST
from brnf.data.shards import build_manifest, write_part
from brnf.data.transforms import decode_image

PART_ROWS, NUM_CLASSES = 2048, 81


@dataclass(frozen=True)
class Copies:
    """Each copy has an id and tags of its own."""

    folder: str
    num_images: int
    kind = "voc"
    masks = "none"
    class_names = ("background", *(f"class{number}" for number in range(1, NUM_CLASSES)))

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        files = sorted(Path(self.folder).glob("*.jpg"))
        entries = [
            Entry(f"copy{number // len(files):03d}-{files[number % len(files)].stem}", str(files[number % len(files)]))
            for number in range(self.num_images)
        ]
        return sorted(entries, key=lambda entry: _digest(entry.id)), []

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        content = Path(entry.file).read_bytes()
        height, width = decode_image(content).shape[:2]
        rng = np.random.default_rng(int.from_bytes(_digest(entry.id)[:8], "little"))
        labels = sorted(int(c) for c in rng.choice(np.arange(1, NUM_CLASSES), rng.integers(1, 4), replace=False))
        return Record(entry.id, content, tuple(labels), None, None, 1, width, height), "drawn"

    def fingerprint(self) -> str:
        return ""


def write_copies(source: Copies, out: str, unit_rows: int) -> None:
    """Write the shards with a process a core."""
    entries, _ = source.list_entries()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        written = [
            pool.submit(_write, source, entries[start : start + PART_ROWS], out, part, unit_rows)
            for part, start in enumerate(range(0, len(entries), PART_ROWS))
        ]
        parts = [part.result() for part in written]
    storage.write_json(storage.join(out, MANIFEST), build_manifest(source, "copies", parts, [], unit_rows))


def _write(source: Copies, entries: list[Entry], out: str, part: int, unit_rows: int) -> dict[str, Any]:
    return write_part(source, entries, out, part=part, unit_rows=unit_rows)


def _digest(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()
