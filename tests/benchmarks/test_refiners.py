"""Refiners: what they cost on photographs, and what they add to a base and a BRNF that `brnf pipeline` has trained."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from brnf.config import ComputeConfig, CrfConfig, GuidedConfig, ParConfig, ReadOutConfig, WalkConfig
from brnf.data.counts import Counts
from brnf.data.transforms import decode_image, decode_mask
from brnf.distributed.runs import load_boundary_network
from brnf.distributed.score import score
from brnf.distributed.session import session
from brnf.evaluation.ablation import scores
from brnf.inference.crf import PRESETS, crf
from brnf.inference.refiners import build_refiner
from brnf.stages import run_config

pytestmark = pytest.mark.benchmark

IMAGES, CLASSES, ROUNDS = 12, 21, 3
PIPELINE = os.environ.get("BRNF_BENCHMARK_PIPELINE")
"""Output of `brnf pipeline` with shards of the split below and of the one it scores; irn/ may be in it."""
CHOOSE_SPLIT = os.environ.get("BRNF_BENCHMARK_SPLIT", "train")
"""Whose masks choose each refiner's parameters."""


def median_seconds(*calls: Callable[[], object]) -> list[float]:
    """Of each call, alternating."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, found in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in seconds]


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[tuple[np.ndarray, np.ndarray, list[int]]]:
    """Images, soft scores of all classes that are blurred from true masks, and the classes present."""
    root = shared / "data/voc_subset/VOCdevkit/VOC2012"
    ids = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    found, rng = [], np.random.default_rng(0)
    for id in ids[:IMAGES]:
        image = decode_image((root / f"JPEGImages/{id}.jpg").read_bytes())
        mask = decode_mask((root / f"SegmentationClass/{id}.png").read_bytes())
        present = [0, *(int(label) for label in np.unique(mask) if 0 < label < CLASSES)]
        dense = np.zeros((CLASSES, *mask.shape), np.float32)
        for label in present:
            coarse = cv2.resize(
                (mask == label).astype(np.float32), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA
            )
            coarse += rng.normal(0, 0.1, coarse.shape).astype(np.float32)
            dense[label] = cv2.resize(coarse, mask.shape[::-1]).clip(0, 1)
        found.append((image, dense, present))
    return found


Photographs = list[tuple[np.ndarray, np.ndarray, list[int]]]


def test_crf__on_the_classes_present_is_twice_as_fast_and_the_same(
    photographs: Photographs, capsys: pytest.CaptureFixture[str]
) -> None:
    """By soft scores, of which absent classes have none; hard unaries depend on the number of classes."""
    config = CrfConfig(preset="deeplab", sharpness=40.0)
    of_all = [crf(image, dense, config).argmax(axis=0) for image, dense, _ in photographs]
    of_few = [np.array(few)[crf(image, dense[few], config).argmax(axis=0)] for image, dense, few in photographs]
    equal = float(np.mean([(one == other).mean() for one, other in zip(of_all, of_few, strict=True)]))
    all_s, few_s = median_seconds(
        lambda: [crf(image, dense, config) for image, dense, _ in photographs],
        lambda: [crf(image, dense[few], config) for image, dense, few in photographs],
    )
    with capsys.disabled():
        print(f"\nCRF of {IMAGES} photographs: {all_s / IMAGES:.3f} s an image with {CLASSES} classes, ", end="")
        print(f"{few_s / IMAGES:.3f} s with those present: {all_s / few_s:.1f} x; {equal:.2%} of pixels equal")
    assert all_s >= 2 * few_s
    assert equal >= 0.995


def test_guided__is_five_times_as_fast_as_the_crf(photographs: Photographs, capsys: pytest.CaptureFixture[str]) -> None:
    refiners = [build_refiner(ReadOutConfig(refine=name), torch.device("cpu")) for name in ("crf", "guided", "par")]
    crf_s, guided_s, par_s = median_seconds(
        *(lambda refine=refine: [refine(image, dense[few]) for image, dense, few in photographs] for refine in refiners)
    )
    with capsys.disabled():
        print(f"\nseconds an image: crf {crf_s / IMAGES:.3f}, par {par_s / IMAGES:.3f}, ", end="")
        print(f"guided {guided_s / IMAGES:.3f} ({crf_s / guided_s:.1f} x as fast as the crf)")
    assert crf_s >= 5 * guided_s


def ways(plain: ReadOutConfig, boundaries: str | None) -> dict[str, list[ReadOutConfig]]:
    """What is tried of each refiner, by name: its own parameters, and how tight the maps are that it gets."""
    presets = [
        CrfConfig(preset=preset, sharpness=s) for preset in PRESETS for s in ((8.0, 16.0), (8.0,))[preset == "irn"]
    ]
    walks = [WalkConfig(boundaries=boundaries, beta=beta) for beta in (5.0, 10.0)]
    tried = {
        "none": [plain],
        "guided": [
            replace(plain, guided=GuidedConfig(sharpness=s, radius=r)) for s in (8.0, 16.0) for r in (0.05, 0.1)
        ],
        "crf": [replace(plain, crf=config) for config in presets],
        "par": [replace(plain, par=ParConfig(sharpness=s)) for s in (8.0, 16.0)],
    }
    if boundaries:
        tried["walk"] = [replace(plain, walk=config) for config in walks]
        tried["walk+crf"] = [replace(plain, walk=config) for config in walks]
        tried["walk+guided"] = [replace(plain, walk=config) for config in walks]
    factor = plain.background_factor or 1.0
    return {
        name: [
            replace(way, refine=name, background_factor=round(times * factor, 3))
            for way in members
            for times in (0.7, 1.0, 1.4)
        ]
        for name, members in tried.items()
    }


@pytest.mark.skipif(PIPELINE is None, reason="set BRNF_BENCHMARK_PIPELINE to the output of a `brnf pipeline`")
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("run", ["base", "brnf"])
def test_refiners__the_best_adds_two_points(
    run: str, photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters are chosen on one split, scores reported on another; time is that of one process."""
    out = str(PIPELINE)
    config = run_config(f"{out}/brnf")
    plain = replace(config.label, scales=(1.0, 1.5))
    if run == "base":
        plain = replace(plain, maps=config.seeds.maps, background_factor=config.seeds.background_factor)
    boundaries = f"{out}/irn" if Path(out, "irn/manifest.json").exists() else None
    tried, split = ways(plain, boundaries), str(config.data.score_split)

    def judge(split: str, chosen: Sequence[ReadOutConfig]) -> list[dict[str, float]]:
        counts = str(tmp_path / split)
        with session():
            score(chosen, ComputeConfig(), run=f"{out}/{run}", shards=f"{out}/shards/{split}", out=counts)
        opened = Counts.open(counts)
        return [scores(opened, way, config.data.score_classes) for way in range(len(chosen))]

    found = iter(judge(CHOOSE_SPLIT, [way for members in tried.values() for way in members]))
    best = [max(((next(found)["miou"], way) for way in members), key=itemgetter(0))[1] for members in tried.values()]
    rows = judge(split, best)
    network = load_boundary_network(boundaries, "cpu").boundary if boundaries else None
    refiners = [build_refiner(way, torch.device("cpu"), network) for way in best]
    taken = median_seconds(
        *(lambda refine=refine: [refine(image, dense[few]) for image, dense, few in photographs] for refine in refiners)
    )
    with capsys.disabled():
        print(f"\n{run}: refiner, mIoU, FP, FN on {split} (parameters chosen on {CHOOSE_SPLIT}), seconds an image")
        for refiner, way, row, seconds in zip(tried, best, rows, taken, strict=True):
            given = [f"background factor {way.background_factor}", *(str(getattr(way, name)) for name in way.refiners)]
            figures = f"{100 * row['miou']:.1f} {row['mean_fp']:.3f} {row['mean_fn']:.3f} {seconds / IMAGES:.3f}"
            print(f"  {refiner:12} {figures}  {', '.join(given)}")
    assert max(row["miou"] for row in rows) - rows[0]["miou"] >= 0.02
