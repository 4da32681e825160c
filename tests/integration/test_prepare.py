"""Prepare on Ray: the whole of bad inputs, the same bytes after a stop, and what stops it for good."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from brnf.config import DataConfig
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.data.shards import Shards

pytestmark = pytest.mark.ray

SMALL = DataConfig(unit_rows=4, part_rows=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Thirty images in VOC layout: one truncated, one without mask, one listed twice."""
    root = tmp_path / "tree"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    ids = [f"{number:03d}" for number in range(30)]
    for number, id in enumerate(ids):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"JPEGImages/{id}.jpg"), pixels)
        cv2.imwrite(str(root / f"SegmentationClass/{id}.png"), np.full((20, 30), 1 + number % 20, np.uint8))
    truncated = root / "JPEGImages/007.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    (root / "SegmentationClass/011.png").unlink()
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join([*ids, "003"]))
    return root


def checksums(out: Path) -> list[str]:
    """Of the parts, from the manifest."""
    return [part["sha256"] for part in Shards.open(str(out)).manifest["parts"]]


def test_prepare__names_what_it_refuses_and_keeps_the_rest(root: Path, tmp_path: Path, ray_session: None) -> None:
    from brnf.distributed.prepare import prepare

    manifest = prepare(SMALL, root=str(root), split="val", out=str(tmp_path / "out"))
    shards = Shards.open(str(tmp_path / "out"))
    assert shards.manifest == manifest
    assert {row["id"]: row["reason"].split(":")[0] for row in manifest["quarantine"]} == {
        "003": "duplicate id", "007": "truncated JPEG", "011": "SegmentationClass/011.png is missing",
    }  # fmt: skip
    assert (manifest["label_source"], manifest["masks"]) == ("masks", "SegmentationClass")
    ids = [id for unit in shards.units for id in shards.read_unit(unit, ["id"])["id"].to_pylist()]
    assert sorted(ids) == [f"{number:03d}" for number in range(30) if number not in (7, 11)]
    assert ids != sorted(ids)
    assert storage.list_names(str(tmp_path / "out")) == [MANIFEST, *(part["name"] for part in manifest["parts"])]


def test_prepare__goes_on_after_a_stop_with_the_same_bytes(root: Path, tmp_path: Path, ray_session: None) -> None:
    """What a stop leaves: parts with reports, a part without, no manifest."""
    from brnf.data.sources import open_source
    from brnf.distributed.prepare import _write_parts, prepare, report_name

    prepare(SMALL, root=str(root), split="val", out=str(tmp_path / "whole"))
    out = tmp_path / "stopped"
    source = open_source(SMALL, root=str(root), split="val")
    entries = source.list_entries()[0]
    chunks = [entries[start : start + 8] for start in range(0, len(entries), 8)]
    _write_parts(source, chunks[:2], str(out), 4)
    (out / report_name(1)).unlink()
    (out / "part-00001.parquet").write_bytes(b"half")
    written_at = (out / "part-00000.parquet").stat().st_mtime_ns
    prepare(SMALL, root=str(root), split="val", out=str(out))
    assert (out / "part-00000.parquet").stat().st_mtime_ns == written_at
    assert checksums(out) == checksums(tmp_path / "whole")


def test_prepare__does_not_take_over_parts_of_other_inputs(root: Path, tmp_path: Path, ray_session: None) -> None:
    from brnf.data.sources import open_source
    from brnf.distributed.prepare import _write_parts, prepare

    source = open_source(SMALL, root=str(root), split="val")
    _write_parts(source, [source.list_entries()[0][:8]], str(tmp_path / "out"), 4)
    for path in (root / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    prepare(SMALL, root=str(root), split="val", out=str(tmp_path / "out"))
    prepare(SMALL, root=str(root), split="val", out=str(tmp_path / "anew"))
    assert checksums(tmp_path / "out") == checksums(tmp_path / "anew")


def test_prepare__without_a_sound_image_says_why(root: Path, tmp_path: Path, ray_session: None) -> None:
    from brnf.distributed.prepare import prepare

    (root / "ImageSets/Segmentation/val.txt").write_text("007\n011\n")
    with pytest.raises(ValueError, match=r"none of 2 images .* can be used:(.|\n)*JPEGImages/007\.jpg: truncated"):
        prepare(SMALL, root=str(root), split="val", out=str(tmp_path / "out"))
    assert storage.list_names(str(tmp_path / "out")) == []


def test_prepare__of_own_images(root: Path, tmp_path: Path, ray_session: None) -> None:
    from brnf.distributed.prepare import prepare

    (tmp_path / "tags.csv").write_text("file,tags\n001.jpg,cat;dog\n002.jpg,bird\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = dataclasses.replace(SMALL, kind="folder")
    arguments = {"root": str(root / "JPEGImages"), "split": "all", "out": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"data\.tags .* is not given"):
        prepare(data, **arguments)
    data = dataclasses.replace(data, tags=str(tmp_path / "tags.csv"), classes=str(tmp_path / "classes.txt"))
    manifest = prepare(data, **arguments)
    assert (manifest["num_images"], manifest["label_source"], manifest["masks"]) == (1, "tags", None)
    assert {row["reason"] for row in manifest["quarantine"] if row["id"] == "002"} == {
        "unknown tag 'bird'; it is not in the list of classes"
    }
    assert len(manifest["quarantine"]) == 29
