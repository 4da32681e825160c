"""What a run scores on a split in several ways of reading it, image by image: to choose one, and to compare runs.

Committed by unit like labels, but counts of pixels are kept instead of masks. This is the one reader that looks at
true masks, so what is chosen by it is no longer strictly weak supervision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from brnf.config import ComputeConfig, ReadOutConfig
from brnf.data import storage
from brnf.data.schema import COUNTS, MANIFEST
from brnf.data.shards import Shards
from brnf.data.transforms import decode_mask
from brnf.distributed.label import describe, open_job, protocol
from brnf.distributed.read_out import COLUMNS
from brnf.distributed.units import read_units
from brnf.evaluation.bias import count_context
from brnf.evaluation.bootstrap import outcomes
from brnf.evaluation.confusion import count_pixels
from brnf.inference.multiscale import Scores, label_map


def score(
    configs: Sequence[ReadOutConfig], compute: ComputeConfig, *, run: str, shards: str, out: str
) -> dict[str, Any]:
    """Read every image in every way and count its pixels; goes on where it stopped.

    Args:
        configs: Ways of reading, which differ in neither scales nor flip.
        compute: Actors, device and precision.
        run: Finished run, of either method.
        shards: Split with masks.
        out: Gets parts/ with one file a unit (schema.COUNTS) and, last, manifest.json.

    Returns:
        The manifest. Its `protocols` say how each way was read; its `quarantine` names each image that could not be
        read or has no mask.

    Raises:
        ValueError: If run and shards do not fit together, or the run cannot be read like this.
    """
    out = storage.absolute(out)
    writer = CountWriter(out, Shards.open(shards).num_classes)
    job = open_job(tuple(configs), compute, writer, run=run, shards=shards)
    read_units(job, "score")
    manifest = describe(job, "counts") | {
        "read_outs": [asdict(config) for config in configs],
        "protocols": [protocol(job, config) for config in configs],
    }
    storage.write_json(storage.join(out, MANIFEST), manifest)
    return manifest


@dataclass(frozen=True)
class CountWriter:
    """Compares what was read with the image's mask and keeps the counts."""

    out: str
    num_classes: int

    @property
    def folder(self) -> str:
        return storage.join(self.out, "parts")

    @property
    def schema(self) -> pa.Schema:
        return COUNTS

    @property
    def columns(self) -> tuple[str, ...]:
        return (*COLUMNS, "mask", "context")

    def size(self, row: dict[str, Any]) -> tuple[int, int]:
        return row["height"], row["width"]

    def accept(self, row: dict[str, Any], readings: Sequence[Scores]) -> dict[str, Any]:
        if row["mask"] is None:
            raise ValueError("the image has no mask to be scored against")
        truth = decode_mask(row["mask"], row["orientation"])
        context = np.zeros_like(truth) if row["context"] is None else decode_mask(row["context"], row["orientation"])
        counts = []
        for scores in readings:
            predicted = label_map(scores)
            taken = count_context(context, truth, predicted, row["image_labels"], self.num_classes)
            counts += [outcomes(count_pixels(truth, predicted, self.num_classes)), taken]
        return {"id": row["id"], "counts": np.concatenate(counts).ravel().tolist(), "error": None}

    def refuse(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        return {"id": row["id"], "error": reason}
