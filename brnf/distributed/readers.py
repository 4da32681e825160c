"""The actors of a read-out: one kind reads units with the network, another refines and commits, or one does both.

Which images of a unit are read together follows from their sizes, and nothing changes the number of threads: a restart
gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from brnf.config import ReadOutConfig
from brnf.data import storage
from brnf.data.records import unusable_id
from brnf.data.schema import unit_name
from brnf.data.shards import Unit, encode_rows
from brnf.data.transforms import decode_image
from brnf.distributed.read_out import ReadOutJob
from brnf.distributed.runs import load_boundary_network, load_run
from brnf.inference.folding import fold_batch_norm
from brnf.inference.multiscale import Scores, most_images, read_outs
from brnf.inference.refiners import Refine, build_refiner
from brnf.training.device import autocast, resolve_device

GPU_BATCH = 16
"""Images of one size that a GPU reads together, where nothing else is said."""


@dataclass(frozen=True)
class Read:
    """An image as the network read it, or why it could not."""

    row: dict[str, Any]
    """Of the shards."""
    image: np.ndarray | None = None
    """uint8 (H, W, 3)."""
    readings: tuple[Scores, ...] = ()
    """One a way of reading, on the CPU."""
    error: str | None = None


class UnitReader:
    """Actor that reads units out, with a model of its own.

    Args:
        job: What to read.
        device: Of the network.
        apart: Whether other actors refine and commit what this one reads.
    """

    def __init__(self, job: ReadOutJob, device: str, apart: bool = False) -> None:
        torch.set_num_threads(1)  # a core is an actor's; and sums do not depend on how many cores there are
        torch.backends.cudnn.deterministic = True
        self.job, self.device = job, resolve_device(device)
        model, config, _ = load_run(job.run, device)
        if job.compute.precision == "float32":  # weights that batch norm has scaled lose more to bfloat16
            noise = torch.randint(256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
            model.network = fold_batch_norm(model.network, noise.to(self.device))
        self.model = model.to(memory_format=torch.channels_last)
        self.stride = config.backbone.output_stride
        self.batch_size = job.compute.label_batch or (1 if self.device.type == "cpu" else GPU_BATCH)
        self.finisher = None if apart else UnitFinisher(job, device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read one unit, and commit it unless others do.

        Args:
            batch: The fields of a Unit, arrays of length one.

        Returns:
            What `UnitFinisher` returns; or, for it, the unit with `reads`, a list of Read.
        """
        try:
            rows = self.job.shards.read_unit(_unit(batch), self.job.writer.columns).to_pylist()
            if self.finisher is not None:
                return self.finisher.finish(_unit(batch), self.read(rows))
            return {**batch, "reads": _boxed(list(self.read(rows)))}
        except OSError as error:
            return _report(stopped=str(error))

    def read(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Read]]:
        """Read images, those of one size together; each comes with its place among the rows."""
        for batch in self.batches(rows):
            yield from zip(batch, self.read_batch([rows[index] for index in batch]), strict=True)

    def batches(self, rows: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
        """Which rows are read together, in what order; their sizes alone decide."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, row in enumerate(rows):
            by_size.setdefault((row["height"], row["width"]), []).append(index)
        for size, indices in by_size.items():
            most = min(self.batch_size, most_images(*size, self.job.configs[0], self.stride))
            yield from (indices[start : start + most] for start in range(0, len(indices), most))

    def read_batch(self, rows: Sequence[dict[str, Any]]) -> Iterator[Read]:
        """Read images of one size together; what is wrong with one is said of it alone."""
        opened = [open_row(row) for row in rows]
        sound = [(read.row, read.image) for read in opened if read.image is not None]
        readings = read_outs(
            self.model,
            [image for _, image in sound],
            [row["image_labels"] for row, _ in sound],
            self.job.configs,
            stride=self.stride,
            size=self.job.writer.size(rows[0]),
        )
        for read in opened:
            if read.error is not None:
                yield read
                continue
            try:
                with autocast(self.device, self.job.compute.precision):
                    found = next(readings)
                yield Read(read.row, read.image, tuple(s._replace(maps=s.maps.cpu()) for s in found))
            except ValueError as error:  # the images are too large; then each is alone
                yield Read(read.row, error=str(error))


def open_row(row: dict[str, Any]) -> Read:
    """Decode the image of a row whose id can name a file."""
    if reason := unusable_id(row["id"]):
        return Read(row, error=reason)
    try:
        return Read(row, decode_image(row["image"], row["orientation"]))
    except ValueError as error:
        return Read(row, error=str(error))


class UnitFinisher:
    """Actor, or part of one, that refines what was read and commits units.

    Args:
        job: What is read.
        device: Of a boundary network and of refiners that can use one.
    """

    def __init__(self, job: ReadOutJob, device: str) -> None:
        torch.set_num_threads(1)
        self.job = job
        self.refiners = [self._build(config, device) for config in job.configs]

    def _build(self, config: ReadOutConfig, device: str) -> Refine:
        run = config.walk.boundaries if "walk" in config.refiners else None
        boundaries = load_boundary_network(run, device).boundary if run else None
        return build_refiner(config, resolve_device(device), boundaries)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Finish a unit that a `UnitReader` has read."""
        if "reads" not in batch:  # it was stopped already
            return batch
        return self.finish(_unit(batch), batch["reads"][0])

    def finish(self, unit: Unit, reads: Iterable[tuple[int, Read]]) -> dict[str, np.ndarray]:
        """Refine and commit a unit.

        Returns:
            How many `images` it has, and how many of them were `refused`; which `worker` did it; why it had to be
            `stopped`, if the storage failed.
        """
        writer = self.job.writer
        try:
            rows = self.rows(reads)
            path = storage.join(writer.folder, unit_name(unit.part, unit.row_group))
            storage.write_bytes(path, encode_rows(rows, writer.schema, len(rows)))
        except OSError as error:
            return _report(stopped=str(error))
        return _report(images=len(rows), refused=sum(row["error"] is not None for row in rows))

    def rows(self, reads: Iterable[tuple[int, Read]]) -> list[dict[str, Any]]:
        """The rows of images that come with their places, in order."""
        made = {index: self._row(read) for index, read in reads}
        return [made[index] for index in range(len(made))]

    def _row(self, read: Read) -> dict[str, Any]:
        """The row of an image; what is wrong with it becomes the row's error."""
        writer = self.job.writer
        if read.image is None:
            return writer.refuse(read.row, str(read.error))
        try:
            pairs = zip(self.refiners, read.readings, strict=True)
            refined = [
                scores._replace(maps=torch.from_numpy(refine(read.image, scores.maps.numpy())))
                for refine, scores in pairs
            ]
            return writer.accept(read.row, refined)
        except ValueError as error:
            return writer.refuse(read.row, str(error))


def _unit(batch: dict[str, np.ndarray]) -> Unit:
    return Unit(**{name: int(batch[name][0]) for name in Unit.__dataclass_fields__})


def _boxed(value: Any) -> np.ndarray:
    """An object as one value of a column."""
    box = np.empty(1, dtype=object)
    box[0] = value
    return box


def _report(*, images: int = 0, refused: int = 0, stopped: str = "") -> dict[str, np.ndarray]:
    """What the driver hears of a unit."""
    worker = f"{ray.get_runtime_context().get_node_id()}:{os.getpid()}"
    values = {"images": images, "refused": refused, "stopped": stopped, "worker": worker}
    return {name: np.array([value]) for name, value in values.items()}
