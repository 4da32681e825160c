"""Reading a split out unit by unit: pools of Ray Data actors, each unit committed by one file, what is left on resume.

A unit is read by the actor itself, so Ray Data carries its description only, and what was read where others refine it.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import ray.data

from brnf.data import storage
from brnf.data.schema import unit_name
from brnf.data.shards import Unit
from brnf.distributed.read_out import ReadOutJob
from brnf.distributed.readers import UnitFinisher, UnitReader
from brnf.distributed.resources import actor_resources, living_nodes, refiner_resources
from brnf.distributed.session import session

REPORT_SECONDS = 5.0
STALL_SECONDS = 120.0
IN_FLIGHT = 2
"""Units that an actor is given: one in hand, one to come."""
STALLED = (
    "actors may be killed for want of memory, or wait for a node that has gone; lower compute.label_actors or "
    "label.long_side if that is it (Ctrl-C stops; the same command goes on from here)"
)
DIED = (
    "died on the way; others took over, and nothing is lost. Nodes that go away do that, and systems where memory runs "
    "out: if it happens again, lower compute.label_actors, label.long_side or the largest of label.scales"
)


def read_units(job: ReadOutJob, what: str) -> None:
    """Read and commit every unit that is not committed yet.

    Args:
        job: What to read and where to put it.
        what: Verb that the line of progress begins with.

    Raises:
        OSError: If the storage failed; names the file and the cause.
        ValueError: If the cluster cannot do it, or its nodes do not share the directory.
    """
    left = units_left(job)
    if not left:
        return
    with session():
        device, readers = actor_resources(job.compute, living_nodes(), len(left))
        refiners = refiner_resources(job.compute, living_nodes(), readers, len(left)) if job.refined_apart else None
        units = ray.data.from_items([asdict(unit) for unit in left], override_num_blocks=len(left))
        given = {"job": job, "device": device, "apart": refiners is not None}
        done = units.map_batches(UnitReader, fn_constructor_kwargs=given, **pool(readers))  # pyright: ignore
        if refiners is not None:
            given = {"job": job, "device": "cpu"}
            done = done.map_batches(UnitFinisher, fn_constructor_kwargs=given, **pool(refiners))  # pyright: ignore
        committed = job.shards.num_images - sum(unit.num_rows for unit in left)
        with Progress(what, job.shards.num_images, committed) as progress:
            for row in done.iter_rows():
                if row["stopped"]:
                    raise OSError(f"{row['stopped']}; mend it and run the same command again: it goes on from here")
                progress.add(int(row["images"]), int(row["refused"]), row["worker"])
        if lost := progress.lost((refiners or readers)["actors"]):
            print(f"{what}: {lost} {'actor' if lost == 1 else 'actors'} {DIED}", file=sys.stderr, flush=True)
    if missing := units_left(job):
        raise ValueError(
            f"{job.writer.folder}: {len(missing)} units were written by other nodes and are not to be seen from here; "
            "give a URI (s3://..., gs://...) or a disk that all nodes share"
        )


def pool(resources: dict[str, Any]) -> dict[str, Any]:
    """Options of a stage of actors: a pool that works while it grows, each with one unit in hand and one to come."""
    most = resources["actors"]
    return {
        "batch_size": 1,
        "batch_format": "numpy",
        "compute": ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
        **{name: value for name, value in resources.items() if name != "actors"},
    }


def units_left(job: ReadOutJob) -> list[Unit]:
    """Units of the shards whose file is not there."""
    there = set(storage.list_names(job.writer.folder))
    return [unit for unit in job.shards.units if unit_name(unit.part, unit.row_group) not in there]


class Progress:
    """Lines on stderr: images done, refused, a second, time left; and that nothing moves, where nothing does.

    Args:
        what: Verb the line begins with.
        total: Images of the split.
        done: Those an earlier run committed.
    """

    def __init__(self, what: str, total: int, done: int) -> None:
        self.what, self.total, self.done, self.refused = what, total, done, 0
        self.told = self.moved = time.monotonic()
        self.first: tuple[int, float] | None = None  # images and time when the first unit came, after actors started
        self.workers: set[str] = set()
        self.over = threading.Event()
        self.heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Progress:
        self.heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.heart.join()
        if self.told < self.moved:
            self.report()

    def add(self, images: int, refused: int, worker: str = "") -> None:
        """Count a unit, and report if the last report is old."""
        self.done, self.refused, self.moved = self.done + images, self.refused + refused, time.monotonic()
        self.workers.add(worker)
        self.first = self.first or (self.done, self.moved)
        if self.moved - self.told >= REPORT_SECONDS:
            self.report()

    def lost(self, actors: int) -> int:
        """Actors that have been replaced: workers heard of beyond those that there are."""
        return max(0, len(self.workers) - actors)

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

    def _beat(self) -> None:
        """Say every STALL_SECONDS without a unit that there was none."""
        while not self.over.wait(STALL_SECONDS):
            still = time.monotonic() - self.moved
            if still >= STALL_SECONDS:
                line = f"{self.what}: {self.done} of {self.total} images, none for {still:.0f} s: {STALLED}"
                print(line, file=sys.stderr, flush=True)
