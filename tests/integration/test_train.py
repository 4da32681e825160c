"""Training on Ray, on the real stream of photographs: workers, repetition, masks and kills change nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from brnf.config import RunConfig, load_recipe, parse
from brnf.data.transforms import decode_image

pytestmark = pytest.mark.ray

STEPS, BATCH = 20, 16
LOSSES = {"classification", "consistency", "guidance", "calibration", "contrast", "f1_bits_per_dim", "f2_bits_per_dim"}
TOLERANCE = 1e-3
"""Relative difference of any loss between one and two workers: sums in another order, and the few cells whose
argmax that turns (measured: 5e-5 for sipe, 2e-4 for brnf)."""
OPTIM = {"epochs": 3, "batch_size": BATCH, "lr_backbone": 0.005, "lr_new": 0.05, "momentum": 0.9, "window_units": 2}
RECIPE: dict[str, Any] = {
    "data": {"unit_rows": 16, "part_rows": 64},
    "backbone": {"name": "test_resnet", "weights": "none", "side_channels": [8, 8, 16, 16], "detach_levels": 1},
    "augment": {"resize_long": [96, 160], "crop_size": 96},
    "base": {"optim": OPTIM},
    "seeds": {"scales": [0.5], "flip": False},
    "brnf": {
        "optim": OPTIM,
        "f1": {"depth": 2, "width": 32},
        "f2": {"depth": 2, "width": 32},
        "calibration": {"refit_every": 4},
        "denoise": {"refit_every": 4},
        "contrast": {"refresh_every": 4, "min_pixels": 20, "region_size": 16, "sampled_size": 4},
    },
    "compute": {"device": "cpu", "log_every": 1, "checkpoint_every": 10},
}


def config(workers: int = 1) -> RunConfig:
    values = json.loads(json.dumps(RECIPE))
    values["compute"] |= {"num_workers": workers}
    return parse(values)


@dataclass(frozen=True)
class Chain:
    """What one random seed leads to."""

    shards: Path
    base: Path
    seeds: Path
    brnf: Path


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 photographs: eight steps an epoch, and some left over."""
    root, source = tmp_path_factory.mktemp("voc"), shared / "data/voc_subset/VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / folder).symlink_to(source / folder)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    ids = (source / "ImageSets/Segmentation/val.txt").read_text().split()
    (lists / "val.txt").write_text("\n".join(ids[:130]))
    return root


def chain(root: Path, out: Path) -> Chain:
    """prepare, base, seeds, brnf."""
    from brnf.distributed.label import make_seeds
    from brnf.distributed.prepare import prepare
    from brnf.distributed.train import train

    made, options = Chain(out / "shards", out / "base", out / "seeds", out / "brnf"), config()
    prepare(options.data, root=str(root), split="val", out=str(made.shards))
    train(options, method="sipe", shards=str(made.shards), out=str(made.base))
    make_seeds(options.seeds, options.compute, run=str(made.base), shards=str(made.shards), out=str(made.seeds))
    train(options, method="brnf", shards=str(made.shards), seeds=str(made.seeds), out=str(made.brnf))
    return made


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Chain:
    return chain(photographs, tmp_path_factory.mktemp("undisturbed"))


def losses(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without the clock's."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_train__corrupted_masks_and_a_second_run_leave_the_weights_bit_identical(
    photographs: Path, undisturbed: Chain, tmp_path: Path
) -> None:
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        (root / folder).parent.mkdir(exist_ok=True)
        (root / folder).symlink_to(photographs / folder)
    (root / "SegmentationClass").mkdir()
    for id in (root / "ImageSets/Segmentation/val.txt").read_text().split():
        shape = decode_image((root / f"JPEGImages/{id}.jpg").read_bytes()).shape[:2]
        wrong = np.random.default_rng(0).integers(0, 21, shape, dtype=np.uint8)
        cv2.imwrite(str(root / f"SegmentationClass/{id}.png"), wrong)
    corrupted = chain(root, tmp_path / "out")
    for run in ("base", "brnf"):
        weights = [(getattr(made, run) / "weights.safetensors").read_bytes() for made in (undisturbed, corrupted)]
        assert weights[0] == weights[1]
        assert losses(getattr(undisturbed, run)) == losses(getattr(corrupted, run))
    manifests = [(made.shards / "manifest.json").read_text() for made in (undisturbed, corrupted)]
    assert manifests[0] != manifests[1], "the masks were not corrupted"


@pytest.mark.parametrize("method", ["sipe", "brnf"])
def test_train__two_workers_give_the_losses_of_one(method: str, undisturbed: Chain, tmp_path: Path) -> None:
    from brnf.distributed.train import train

    seeds = str(undisturbed.seeds) if method == "brnf" else None
    train(config(workers=2), method=method, shards=str(undisturbed.shards), seeds=seeds, out=str(tmp_path))
    one, two = losses(undisturbed.base if method == "sipe" else undisturbed.brnf)[:STEPS], losses(tmp_path)[:STEPS]
    assert len(one) == STEPS and [row.keys() for row in one] == [row.keys() for row in two]
    pairs = [(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in LOSSES & a.keys()]
    worst = max(abs(a - b) / max(abs(a), 0.1) for a, b in pairs)
    print(f"{method}: largest relative difference {worst:.1e}")
    assert worst < TOLERANCE


def test_train__every_module_of_brnf_took_part(undisturbed: Chain) -> None:
    manifest = json.loads((undisturbed.brnf / "manifest.json").read_text())
    assert manifest["activity"]["calibration"] >= 0.3 and manifest["activity"]["denoise"] >= 0.3
    assert manifest["steps"] == len(losses(undisturbed.brnf)) == 3 * 8
    assert list((undisturbed.brnf / "tb").glob("events*"))


def test_train__killed_in_the_middle_it_ends_with_the_same_bytes(
    undisturbed: Chain, tmp_path: Path, kill_when: Callable[[list[str], Callable[[], bool]], None], ray_session: None
) -> None:
    from brnf.cli import main

    recipe, out = tmp_path / "recipe.yaml", tmp_path / "base"
    recipe.write_text(yaml.safe_dump(RECIPE))
    arguments = ["train", "--method", "sipe", "--config", str(recipe), "--shards", str(undisturbed.shards)]
    arguments += ["--out", str(out)]

    def between_checkpoints() -> bool:
        return (out / "metrics.jsonl").exists() and len(losses(out)) >= 13

    kill_when([sys.executable, "-m", "brnf", *arguments], between_checkpoints)
    assert not (out / "manifest.json").exists()
    main(arguments)
    for name in ("weights.safetensors", "manifest.json"):
        assert (out / name).read_bytes() == (undisturbed.base / name).read_bytes(), name
    assert losses(out) == losses(undisturbed.base)


def test_train__too_few_images_and_absent_inputs_are_refused(undisturbed: Chain, tmp_path: Path) -> None:
    from brnf.distributed.train import train

    large = load_recipe("demo", {"base.optim.batch_size": 500})
    with pytest.raises(ValueError, match="batch_size"):
        train(large, method="sipe", shards=str(undisturbed.shards), out=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="absent"):
        train(config(), method="sipe", shards=str(tmp_path / "absent"), out=str(tmp_path / "a"))
