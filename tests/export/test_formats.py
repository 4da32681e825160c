"""Exports, read back by the tools they are for."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_converter import brush
from pycocotools.coco import COCO

from brnf.data import storage
from brnf.data.palette import voc_palette
from brnf.data.schema import LABEL, unit_name
from brnf.data.transforms import decode_mask
from brnf.export import FormatName
from brnf.export.formats import WRITERS, export
from brnf.export.label_studio import encode_brush
from brnf.export.voc_png import encode_palette_png
from brnf.stages import export_stage

CLASS_NAMES = ["background", "cat", "dog & <cow>", "Kuh"]
IMAGE = "s3://photos/{id}.jpg"


@pytest.fixture(scope="module")
def masks() -> dict[str, np.ndarray]:
    """By id: noise, ignored pixels, one class only, background only, one pixel, a run longer than a code holds."""
    rng = np.random.default_rng(0)
    noise, ignored = rng.integers(0, 4, (2, 37, 53), dtype=np.uint8)
    ignored[5:20, 7:30] = 255
    constant = {"all": ((9, 12), 2), "none": ((9, 12), 0), "one": ((1, 1), 1), "long": ((300, 310), 1)}
    named = {"noise": noise, "größe 猫": ignored, **{id: np.full(*what, np.uint8) for id, what in constant.items()}}
    named["long"][299, 300:] = 3
    return named


@pytest.fixture(scope="module")
def labels(masks: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The masks as `brnf label` leaves them, in two units, with one image in quarantine."""
    out = tmp_path_factory.mktemp("labels")
    rows = [
        {"id": id, "mask": encode_palette_png(mask), "width": mask.shape[1], "height": mask.shape[0],
         "mean_top_score": 0.75, "uncertain_share": 0.1}
        for id, mask in masks.items()
    ]  # fmt: skip
    rows.insert(1, {"id": "lost", "width": 3, "height": 4, "error": "truncated"})
    (out / "parts").mkdir()
    for unit, start in enumerate(range(0, len(rows), 4)):
        pq.write_table(pa.Table.from_pylist(rows[start : start + 4], schema=LABEL), out / "parts" / unit_name(0, unit))
    manifest = {
        "class_names": CLASS_NAMES,
        "run_hash": "0123abcd",
        "protocol": {"split": "val", "read_out": "fusion"},
        "quarantine": [{"id": "lost", "reason": "truncated"}],
    }
    storage.write_json(f"{out}/manifest.json", manifest)
    return str(out)


def test_coco__is_read_by_pycocotools(labels: str, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    export(labels, str(tmp_path), "coco", IMAGE)
    coco = COCO(tmp_path / "annotations.json")
    assert {image["file_name"] for image in coco.imgs.values()} == {IMAGE.replace("{id}", id) for id in masks}
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(enumerate(CLASS_NAMES[1:], start=1))
    for number, image in coco.imgs.items():
        truth = masks[image["file_name"].removeprefix("s3://photos/").removesuffix(".jpg")]
        assert (image["height"], image["width"]) == truth.shape
        drawn = np.zeros_like(truth)
        for annotation in coco.loadAnns(coco.getAnnIds(number)):
            region = coco.annToMask(annotation).astype(bool)
            drawn[region] = annotation["category_id"]
            left, top, width, height = (round(side) for side in annotation["bbox"])
            assert annotation["area"] == region.sum() == region[top : top + height, left : left + width].sum()
        np.testing.assert_array_equal(drawn, np.where(truth == 255, 0, truth))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))


def test_label_studio__is_read_by_its_converter(labels: str, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    export(labels, str(tmp_path), "label-studio", IMAGE)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert {task["data"]["id"]: task["data"]["image"] for task in tasks} == {
        id: IMAGE.replace("{id}", id) for id in masks
    }
    for task in tasks:
        [prediction] = task["predictions"]
        assert (prediction["model_version"], prediction["score"]) == ("brnf 0123abcd", 0.75)
        truth = masks[task["data"]["id"]]
        results = [{**region, **region["value"]} for region in prediction["result"]]  # as its converter flattens them
        layers = brush.decode_from_annotation("label", results)
        assert set(layers) == {f"label-{CLASS_NAMES[c]}-0" for c in np.unique(truth) if c not in (0, 255)}
        for name, layer in layers.items():
            label = CLASS_NAMES.index(name.removeprefix("label-").removesuffix("-0"))
            np.testing.assert_array_equal(layer, 255 * (truth == label))
    view = ElementTree.parse(tmp_path / "labelling.xml").getroot()
    names = {entry.get("value"): entry.get("background") for entry in view.iter("Label")}
    assert names == {name: f"#{bytes(voc_palette()[c]).hex()}" for c, name in enumerate(CLASS_NAMES) if c}


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 40))))
def test_brush__round_trip(painted: np.ndarray) -> None:
    decoded = brush.decode_rle(encode_brush(painted)).reshape(*painted.shape, 4)
    np.testing.assert_array_equal(decoded, np.repeat(255 * painted[..., None], 4, axis=2))


def test_voc__is_a_tree_of_masks_and_lists(labels: str, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    export(labels, str(tmp_path), "voc", IMAGE)
    assert (tmp_path / "ImageSets/Segmentation/val.txt").read_text().splitlines() == sorted(masks)
    assert (tmp_path / "classes.txt").read_text().splitlines() == CLASS_NAMES[1:]
    for id, mask in masks.items():
        np.testing.assert_array_equal(decode_mask((tmp_path / f"SegmentationClass/{id}.png").read_bytes()), mask)


def test_parquet__holds_masks_and_class_names(labels: str, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    export(labels, str(tmp_path), "parquet", IMAGE)
    dataset = pads.dataset(sorted(tmp_path.glob("*.parquet")))
    assert json.loads(dataset.schema.metadata[b"class_names"]) == CLASS_NAMES
    rows = dataset.to_table().to_pylist()
    assert len(rows) == len(masks) and {row["mean_top_score"] for row in rows} == {0.75}
    for row in rows:
        np.testing.assert_array_equal(decode_mask(row["mask"]), masks[row["id"]])


def test_npz__holds_arrays(labels: str, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    export(labels, str(tmp_path), "npz", IMAGE)
    for id, mask in masks.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"masks/{id}.npz", allow_pickle=False)["mask"], mask)


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_every_format__same_bytes_again_and_a_manifest_that_names_what_is_missing(
    labels: str, tmp_path: Path, format: FormatName
) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    for out in (once, again):
        manifest = export(labels, str(out), format, IMAGE)
    assert json.loads((once / "manifest.json").read_text()) == manifest
    assert (manifest["num_images"], manifest["num_refused"]) == (6, 1)
    assert manifest["quarantine"] == [{"id": "lost", "reason": "truncated"}]
    files = [path.relative_to(once) for path in once.rglob("*") if path.is_file()]
    assert all((once / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_images_without_a_place_for_their_id__are_refused_before_anything_is_written(
    labels: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--image is 'photo.jpg'.*\{id\}"):
        export_stage(labels=labels, format="coco", image="photo.jpg", out=str(tmp_path))
