"""Reading a split out unit by unit: a pool of Ray Data actors, each unit committed by one file, what is left on resume.

A unit is read by the actor itself, so Ray Data carries its description only. Its images are always read one after
the other, each with its mirror image, on a number of threads that nothing changes: a restart gives the same bytes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray.data
import torch

from brnf.config import ComputeConfig, ReadOutConfig
from brnf.data import storage
from brnf.data.schema import unit_name
from brnf.data.shards import Shards, Unit, encode_rows
from brnf.data.transforms import decode_image
from brnf.distributed.resources import actor_resources, living_nodes
from brnf.distributed.runs import load_run
from brnf.distributed.session import session
from brnf.inference import guided
from brnf.inference.multiscale import Scores, read_outs
from brnf.training.device import autocast, resolve_device

COLUMNS = ("id", "image", "width", "height", "orientation", "image_labels")
"""What reading an image takes. Masks are not among them."""
REPORT_SECONDS = 5.0


class Writer(Protocol):
    """What becomes of an image's scores. Picklable: actors get a copy."""

    @property
    def folder(self) -> str:
        """Directory of the unit files."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Of the unit files; `id` and `error` are among its fields."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the shards that rows come with."""
        ...

    def size(self, row: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the scores wanted for an image."""
        ...

    def accept(self, row: dict[str, Any], readings: Sequence[Scores]) -> dict[str, Any]:
        """Make the row of an image that was read, in as many ways as the job says; a ValueError refuses it."""
        ...

    def refuse(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """Make the row of one that cannot be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadOutJob:
    """Everything an actor needs."""

    run: str
    shards: Shards
    configs: tuple[ReadOutConfig, ...]
    """Ways of reading; labels and seeds have one. They differ in neither scales nor flip."""
    compute: ComputeConfig
    writer: Writer


class UnitReader:
    """Actor that reads units out, with a model of its own."""

    def __init__(self, job: ReadOutJob, device: str) -> None:
        torch.set_num_threads(1)  # a core is an actor's; and sums do not depend on how many cores there are
        torch.backends.cudnn.deterministic = True
        self.job, self.device = job, resolve_device(device)
        model, config, _ = load_run(job.run, device)
        self.model = model.to(memory_format=torch.channels_last)
        self.stride = config.backbone.output_stride

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read one unit and commit it.

        Args:
            batch: The fields of a Unit, arrays of length one.

        Returns:
            How many `images` it has, and how many of them were `refused`.
        """
        unit = Unit(**{name: int(value[0]) for name, value in batch.items()})
        writer = self.job.writer
        rows = [self.read(row) for row in self.job.shards.read_unit(unit, writer.columns).to_pylist()]
        path = storage.join(writer.folder, unit_name(unit.part, unit.row_group))
        storage.write_bytes(path, encode_rows(rows, writer.schema, len(rows)))
        refused = sum(row["error"] is not None for row in rows)
        return {"images": np.array([len(rows)]), "refused": np.array([refused])}

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """Read one image; what is wrong with it becomes its row's error."""
        writer, configs = self.job.writer, self.job.configs
        try:
            image = decode_image(row["image"], row["orientation"])
            with autocast(self.device, self.job.compute.precision):
                readings = read_outs(
                    self.model, image, row["image_labels"], configs, stride=self.stride, size=writer.size(row)
                )
                refined = [refine(image, *pair) for pair in zip(readings, configs, strict=True)]
            return writer.accept(row, refined)
        except ValueError as error:
            return writer.refuse(row, str(error))


def refine(image: np.ndarray, scores: Scores, config: ReadOutConfig) -> Scores:
    """What is done to scores after the network."""
    if config.refine == "none":
        return scores
    return scores._replace(maps=torch.from_numpy(guided.refine(image, scores.maps.cpu().numpy(), config.guided)))


def read_units(job: ReadOutJob, what: str) -> None:
    """Read and commit every unit that is not committed yet.

    Args:
        job: What to read and where to put it.
        what: Verb that the line of progress begins with.

    Raises:
        ValueError: If the cluster cannot do it, or its nodes do not share the directory.
    """
    left = units_left(job)
    if not left:
        return
    with session():
        device, resources = actor_resources(job.compute, living_nodes(), len(left))
        units = ray.data.from_items([asdict(unit) for unit in left], override_num_blocks=len(left))
        done = units.map_batches(
            UnitReader,  # pyright: ignore[reportArgumentType]  (Ray's type of a callable class is narrower than its use)
            fn_constructor_kwargs={"job": job, "device": device},
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=resources.pop("actors")),
            **resources,
        )
        progress = Progress(what, job.shards.num_images, job.shards.num_images - sum(unit.num_rows for unit in left))
        for row in done.iter_rows():
            progress.add(int(row["images"]), int(row["refused"]))
        progress.report()
    if missing := units_left(job):
        raise ValueError(
            f"{job.writer.folder}: {len(missing)} units were written by other nodes and are not to be seen from here; "
            "give a URI (s3://..., gs://...) or a disk that all nodes share"
        )


def units_left(job: ReadOutJob) -> list[Unit]:
    """Units of the shards whose file is not there."""
    there = set(storage.list_names(job.writer.folder))
    return [unit for unit in job.shards.units if unit_name(unit.part, unit.row_group) not in there]


class Progress:
    """A line on stderr every few seconds: images done, refused, a second, time left.

    Args:
        what: Verb the line begins with.
        total: Images of the split.
        done: Those an earlier run committed.
    """

    def __init__(self, what: str, total: int, done: int) -> None:
        self.what, self.total, self.done, self.refused = what, total, done, 0
        self.told = time.monotonic()
        self.first: tuple[int, float] | None = None  # images and time when the first unit came, after actors started

    def add(self, images: int, refused: int) -> None:
        """Count a unit, and report if the last report is old."""
        self.done, self.refused = self.done + images, self.refused + refused
        self.first = self.first or (self.done, time.monotonic())
        if time.monotonic() - self.told >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Print the line."""
        self.told = time.monotonic()
        line = f"{self.what}: {self.done} of {self.total} images"
        if self.refused:
            line += f", {self.refused} refused"
        if self.first and self.done > self.first[0]:
            rate = (self.done - self.first[0]) / (self.told - self.first[1])
            line += f", {rate:.1f}/s, {(self.total - self.done) / rate:.0f} s left"
        print(line, file=sys.stderr, flush=True)
