"""BSDNF offline: the base seeds of a `brnf pipeline` before and after a flow cleaned them, against the true masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from brnf.data.schema import BACKGROUND, IGNORE_INDEX
from brnf.data.seeds import Seeds, decode_seed
from brnf.data.shards import Shards
from brnf.data.transforms import decode_mask
from brnf.evaluation.confusion import count_pixels, metrics
from brnf.inference.multiscale import Scores, label_map
from brnf.inference.refiners import resize_maps
from brnf.stages import run_config

PIPELINE = os.environ.get("BRNF_BENCHMARK_PIPELINE")
"""Output of `brnf pipeline` on the VOC subset, with a recipe that cleans seeds."""

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(PIPELINE is None, reason="set BRNF_BENCHMARK_PIPELINE to the output of a `brnf pipeline`"),
]


class Pixels(NamedTuple):
    """Classes of one image's pixels, uint8 (H, W) each."""

    truth: np.ndarray
    base: np.ndarray
    cleaned: np.ndarray


def read(shards: Shards, seeds: list[Seeds], ids: set[str]) -> Iterator[Pixels]:
    for unit in shards.units:
        rows = shards.read_unit(unit, ("id", "mask", "orientation")).to_pylist()
        for row, *found in zip(rows, *(kind.read_unit(unit).to_pylist() for kind in seeds), strict=True):
            if row["id"] in ids:
                truth = decode_mask(row["mask"], row["orientation"])
                yield Pixels(truth, *(seed_labels(seed, truth.shape) for seed in found))


def seed_labels(row: dict[str, object], size: tuple[int, ...]) -> np.ndarray:
    keys, scores = decode_seed(row)
    maps = torch.from_numpy(resize_maps(scores, size))
    return label_map(Scores(tuple(keys.tolist()), maps))


def test_cleaned_seeds__are_two_points_better_and_what_is_taken_is_wrong_twice_as_often(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(f"{PIPELINE}/brnf")
    shards = Shards.open(f"{PIPELINE}/shards/{config.data.train_split}")
    seeds = [Seeds.open(f"{PIPELINE}/{name}", shards) for name in ("seeds", "base/clean-seeds")]
    ids = (shared / "data/voc_subset/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").read_text().split()
    confusions = np.zeros((2, shards.num_classes, shards.num_classes), np.int64)
    judged = {"taken": np.zeros(2, np.int64), "kept": np.zeros(2, np.int64), "given": np.zeros(2, np.int64)}
    for truth, base, cleaned in read(shards, seeds, set(ids)):
        for confusion, labels in zip(confusions, (base, cleaned), strict=True):
            confusion += count_pixels(truth, labels, shards.num_classes)
        known, of_class, moved = truth != IGNORE_INDEX, base != BACKGROUND, base != cleaned
        for name, pixels, labels in (
            ("taken", of_class & moved, base),
            ("kept", of_class & ~moved, base),
            ("given", (cleaned != BACKGROUND) & moved, cleaned),
        ):
            pixels = pixels & known
            judged[name] += int(pixels.sum()), int((labels != truth)[pixels].sum())
    before, after = (metrics(found, shards.class_names, config.data.score_classes) for found in confusions)
    wrong = {name: errors / pixels for name, (pixels, errors) in judged.items()}
    foreground = judged["taken"][0] + judged["kept"][0]
    with capsys.disabled():
        print(f"\n{len(ids)} images of train: mIoU, FP, FN")
        for name, found in (("base seeds", before), ("cleaned", after)):
            print(f"  {name:12} {100 * found['miou']:.1f} {found['mean_fp']:.3f} {found['mean_fn']:.3f}")
        for name, (pixels, _) in judged.items():
            print(f"  {name:12} {pixels / foreground:.1%} of the seeds' foreground, {wrong[name]:.1%} of it wrong")
    assert judged["taken"][0] >= 0.05 * foreground
    assert wrong["taken"] >= 2 * wrong["kept"]
    assert after["miou"] - before["miou"] >= 0.02
