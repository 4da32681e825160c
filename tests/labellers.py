"""Two ways to label images, each for a process of its own that a benchmark starts: SIPE's loop, and ours.

The loop is written from the description of that script: one image at a time, one scale at a time with its mirror image,
maps of all classes, all of them brought to the size of the image and summed, and only then the classes of the image
chosen. Two things are ours in it, so that labels can be compared: sizes are rounded to whole cells, and maps are made
by brnf.models.cam, with matrix products where the script multiplies tensors of all pairs of cells for each class, which
takes longer.
"""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from brnf.data.palette import voc_palette
from brnf.data.shards import Unit
from brnf.distributed import readers
from brnf.distributed.label import MaskWriter
from brnf.distributed.read_out import COLUMNS, ReadOutJob
from brnf.distributed.readers import UnitReader
from brnf.distributed.runs import load_run
from brnf.inference import multiscale
from brnf.inference.multiscale import average_with_mirror, scaled_size
from brnf.models.cam import class_maps, normalise_maps, prototype_maps


class Stages:
    """CPU seconds of this process by stage; a stage within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.open = ["the rest"]
        self.since = time.process_time()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.tick()
        self.open.append(name)
        yield
        self.tick()
        self.open.pop()

    def tick(self) -> None:
        now = time.process_time()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return function(*arguments, **options)

        return run

    def take(self) -> dict[str, float]:
        """Seconds since the last time."""
        self.tick()
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


class SipeLoop:
    """One image after the other, one scale after the other, all classes."""

    def __init__(self, job: ReadOutJob, out: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.job, self.out, self.stages = job, Path(out), Stages()
        model, config, _ = load_run(job.run)
        self.model, self.stride = model.to(memory_format=torch.channels_last), config.backbone.output_stride

    def __call__(self, unit: Unit) -> dict[str, float]:
        for row in self.job.shards.read_unit(unit, COLUMNS).to_pylist():
            self.label(row)
        return self.stages.take()

    @torch.no_grad()
    def label(self, row: dict[str, Any]) -> None:
        stages, classes = self.stages, self.model.num_classes
        with stages("decode"):
            image = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        allowed = torch.zeros(1, classes, dtype=torch.bool)
        allowed[0, [0, *row["image_labels"]]] = True
        pixels, by_scale = torch.from_numpy(image).permute(2, 0, 1)[None], []
        for scale in self.job.configs[0].scales:
            with stages("resize"):
                size = scaled_size(row["height"], row["width"], scale, None, self.stride)
                resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
                pair = torch.cat([resized, resized.flip(3)])
            with stages("network"):
                output = self.model.network(pair)
            with stages("maps"):
                maps = self.maps(average_with_mirror(output.features), average_with_mirror(output.cam), allowed)
            with stages("upsampling"):
                by_scale.append(F.interpolate(maps, image.shape[:2], mode="bilinear", align_corners=False))
        with stages("upsampling"):
            total = normalise_maps(torch.stack(by_scale).sum(0))[0]
        with stages("label, PNG"):
            keys = allowed[0].nonzero()[:, 0].numpy()
            best = keys[total.numpy()[keys].argmax(axis=0)].astype(np.uint8)
            written = Image.fromarray(best)
            written.putpalette(voc_palette().tobytes())
            written.save(self.out / f"{row['id']}.png")

    def maps(self, features: Tensor, cam: Tensor, allowed: Tensor) -> Tensor:
        config, valid = self.model.cam_config, torch.ones_like(cam[:, 0], dtype=torch.bool)
        classifier = class_maps(cam, allowed, config.mask_absent)
        return normalise_maps(prototype_maps(features, features, classifier, allowed, valid, config).maps)


class Actor:
    """What `brnf label` runs, with its parts timed."""

    def __init__(self, job: ReadOutJob) -> None:
        self.reader, self.stages = UnitReader(job, "cpu"), Stages()
        timed, network = self.stages.timed, self.reader.model.network
        network.forward = timed("network", network.forward)
        readers.decode_image = timed("decode", readers.decode_image)
        multiscale.maps_at_one_scale = timed("maps", multiscale.maps_at_one_scale)
        multiscale.F = SimpleNamespace(interpolate=self.interpolate)  # pyright: ignore[reportAttributeAccessIssue]
        MaskWriter.accept = timed("label, PNG", MaskWriter.accept)
        readers._report = lambda **_: {}  # no driver is there to hear it

    def interpolate(self, values: Tensor, *arguments: Any, **options: Any) -> Tensor:
        with self.stages("resize" if values.dtype == torch.uint8 else "upsampling"):
            return F.interpolate(values, *arguments, **options)

    def __call__(self, unit: Unit) -> dict[str, float]:
        self.reader({name: np.array([value]) for name, value in asdict(unit).items()})
        return self.stages.take()


_labeller: Callable[[Unit], dict[str, float]]


def start(
    make: Callable[..., Callable[[Unit], dict[str, float]]], job: ReadOutJob, arguments: Sequence[Any], ready: Barrier
) -> None:
    """Make a process one of the two, let it warm up, and wait for the others of its pool."""
    global _labeller
    _labeller = make(job, *arguments)
    _labeller(job.shards.units[0])
    ready.wait()


def label_unit(unit: Unit) -> dict[str, float]:
    """Label a unit; returns CPU seconds by stage."""
    return _labeller(unit)
