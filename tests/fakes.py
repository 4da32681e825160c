"""Stage functions that only write what they were given, for tests of what runs when."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brnf.config import RunConfig
from brnf.data import storage
from brnf.data.counts import ROWS
from brnf.data.schema import COUNTS, MANIFEST
from brnf.data.shards import encode_rows
from brnf.stage import manifest_hash


class Stages:
    """Stands in for the modules that work: notes each call, writes a manifest that follows from its inputs."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sessions = 0
        self.source = "as delivered"
        self.dies_in: str | None = None

    def _write(self, call: str, out: str, **holds: Any) -> dict[str, Any]:
        self.calls.append(call)
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        pieces = len(list(path.glob("piece-*")))
        (path / f"piece-{pieces}").write_text(call)
        if self.dies_in == call:
            raise KeyboardInterrupt
        (path / MANIFEST).write_text(json.dumps(holds))
        return holds

    def prepare(self, data: Any, *, root: str, split: str, out: str) -> dict[str, Any]:
        bad = [{"id": "b", "file": "b.jpg", "reason": "truncated"}] if split == "train" else []
        return self._write(f"prepare {split}", out, split=split, source=self.source, quarantine=bad)

    def train(self, config: RunConfig, *, method: str, shards: str, seeds: Any, base: Any, out: str) -> dict[str, Any]:
        section = config.base if method == "sipe" else config.brnf
        figures = {"activity": {"calibration": 0.7, "denoise": 0.6, "contrast": 0.5}, "sampled_features": 42}
        inputs = [manifest_hash(path) for path in (shards, seeds, base) if path]
        name = "base" if method == "sipe" else Path(out).name
        return self._write(name, out, weights=repr((section, config.cam, config.random_seed, inputs)), **figures)

    def make_seeds(self, read_out: Any, compute: Any, *, run: str, shards: str, out: str) -> dict[str, Any]:
        inputs = [manifest_hash(run), manifest_hash(shards)]
        return self._write(Path(out).name, out, read_out=repr(read_out), inputs=inputs)

    def make_true_seeds(self, *, shards: str, out: str) -> dict[str, Any]:
        return self._write("true seeds", out, inputs=[manifest_hash(shards)])

    def label(self, read_out: Any, compute: Any, *, run: str, shards: str, out: str, masks: Any) -> dict[str, Any]:
        call = "label base" if Path(run).name == "base" else f"label {Path(shards).name}"
        return self._write(call, out, read_out=repr(read_out), inputs=[manifest_hash(run), manifest_hash(shards)])

    def score(self, ways: Any, compute: Any, *, run: str, shards: str, out: str) -> dict[str, Any]:
        names = ["background", *"abc"]
        rng = np.random.default_rng(int(manifest_hash(run), 16))
        pixels = rng.integers(1, 9, (4, len(ways), ROWS, len(names)))
        rows = [{"id": f"{number}", "counts": image.ravel().tolist()} for number, image in enumerate(pixels)]
        storage.write_bytes(storage.join(out, "parts", "unit.parquet"), encode_rows(rows, COUNTS, len(rows)))
        read_outs = [dataclasses.asdict(way) for way in ways]
        call = f"score {Path(run).name} {Path(shards).name}"
        return self._write(call, out, read_outs=read_outs, protocols=read_outs, class_names=names)

    def evaluate(self, labels: str, shards: str, classes: Any) -> dict[str, Any]:
        if "evaluate" not in self.calls[-1:]:
            self.calls.append("evaluate")
        return {"miou": 0.5, "labels": manifest_hash(labels)}

    def compare(self, labels: str, against: str, shards: str, classes: Any) -> dict[str, Any]:
        return {"miou": {"difference": 0.0, "low": 0.0, "high": 0.0}}

    def write_report(self, path: str, **_: Any) -> None:
        self.calls.append("report")
        Path(path).write_text("report")

    @contextlib.contextmanager
    def session(self, address: str | None = None) -> Iterator[None]:
        self.sessions += 1
        yield
