"""COCO trees: both forms, the order of drawing, what is refused and why, and an oracle on real annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from brnf.data.coco import COCO_CLASSES, CocoTree, draw_objects
from brnf.data.schema import IGNORE_INDEX
from brnf.data.transforms import decode_mask

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]


def square(id: int, image: int, category: int, left: int, top: int, side: int, **fields: Any) -> dict[str, Any]:
    """An annotation whose polygon is a square."""
    right, bottom = left + side, top + side
    outline = [[left, top, right, top, right, bottom, left, bottom]]
    found = {"id": id, "image_id": image, "category_id": category, "area": side**2, "iscrowd": 0}
    return found | {"segmentation": outline} | fields


def write_tree(root: Path, names: list[str], annotations: list[dict[str, Any]], folder: str = "JPEGImages/val") -> Path:
    """A tree with an instances JSON; images are numbered from 1."""
    (root / folder).mkdir(parents=True)
    (root / "annotations").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name in names:
        cv2.imwrite(str(root / folder / Path(name).name), pixels)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, start=1)]
    instances = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations/instances_val.json").write_text(json.dumps(instances))
    return root


def read(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Records by id, and reasons of refusals by id."""
    tree = CocoTree.open(str(root), "val")
    entries, refused = tree.list_entries()
    records, reasons = {}, {refusal.id: refusal.reason for refusal in refused}
    for entry in entries:
        try:
            records[entry.id] = tree.read_record(entry)[0]
        except ValueError as error:
            reasons[entry.id] = str(error)
    return records, reasons


@pytest.mark.parametrize("folder", ["JPEGImages/val", "val"])
def test_json__small_objects_stay_on_top_and_crowds_are_ignored(tmp_path: Path, folder: str) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 2 * HEIGHT, (WIDTH - 2) * HEIGHT]}
    small, large = square(1, 1, 90, 12, 5, 4), square(2, 1, 1, 10, 2, 12)
    write_tree(tmp_path, ["a.jpg"], [small, large, square(3, 1, 17, 0, 0, 1, iscrowd=1, segmentation=crowd)], folder)
    records, reasons = read(tmp_path)
    mask = decode_mask(records["a"].mask)
    assert (not reasons) and records["a"].image_labels == (1, 2, 3)  # person, cat, toothbrush by ascending id
    assert mask.shape == (HEIGHT, WIDTH)
    assert (mask[7, 14], mask[3, 11], mask[0, 29]) == (3, 1, 0)
    assert (mask[:, :2] == IGNORE_INDEX).all() and (mask[:, 2:] != IGNORE_INDEX).all()


def test_json__names_what_it_refuses(tmp_path: Path) -> None:
    annotations = [
        square(1, 1, 1, 0, 0, 5),
        square(3, 3, 1, 0, 0, 5, segmentation=[[1, 2, 3, 4]]),
        square(4, 4, 1, 0, 0, 5, segmentation={"size": [HEIGHT, WIDTH + 1], "counts": [3]}),
        square(5, 5, 1, 0, 0, 5, segmentation={"size": [HEIGHT, WIDTH], "counts": [3, 10**6]}),
        square(6, 6, 4, 0, 0, 5),
        square(7, 7, 1, 0, 0, 5),
    ]
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "../../g.jpg", "a.jpg"]
    records, reasons = read(write_tree(tmp_path, names, annotations))
    assert list(records) == ["a"]
    for id, reason in {
        "a": "duplicate id", "b": "no tags", "c": "annotation 3 has a damaged segmentation", "d": "it is for",
        "e": "do not add up", "f": "annotation 6 is of an unknown category", "g": "leads out of",
    }.items():  # fmt: skip
        assert reason in reasons[id]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "has no annotations"), ('{"images": [], "annotations": []}', "has no categories")],
)
def test_json__that_is_none_stops_the_run(tmp_path: Path, text: str, message: str) -> None:
    write_tree(tmp_path, ["a.jpg"], [])
    (tmp_path / "annotations/instances_val.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_annotation__without_a_field_is_named(tmp_path: Path) -> None:
    broken = square(9, 1, 1, 0, 0, 5)
    del broken["area"]
    with pytest.raises(ValueError, match=r"annotation 9 has no field 'area'"):
        read(write_tree(tmp_path, ["a.jpg"], [broken]))


def test_masks__give_tags_and_names_where_there_is_no_json(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a.jpg", "b.jpg"], [])
    (tmp_path / "annotations/instances_val.json").unlink()
    with pytest.raises(ValueError, match=r"neither annotations/instances_val.json nor SegmentationClass/val"):
        CocoTree.open(str(tmp_path), "val")
    (tmp_path / "SegmentationClass/val").mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[0], mask[1], mask[2] = 80, 1, IGNORE_INDEX
    cv2.imwrite(str(tmp_path / "SegmentationClass/val/a.png"), mask)
    records, reasons = read(tmp_path)
    assert records["a"].image_labels == (1, 80) and "b.png is missing" in reasons["b"]
    assert CocoTree.open(str(tmp_path), "val").class_names == COCO_CLASSES


def test_split__that_is_not_there_names_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither JPEGImages/nope nor nope"):
        CocoTree.open(str(tmp_path), "nope")


def rasterise(coco: COCO, image: Any) -> np.ndarray:
    """Independent of ours: pycocotools draws each annotation."""
    index = {id: number for number, id in enumerate(sorted(coco.getCatIds()), start=1)}
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    for annotation in sorted(annotations, key=lambda a: a["area"], reverse=True):
        value = IGNORE_INDEX if annotation["iscrowd"] else index[annotation["category_id"]]
        mask[coco.annToMask(annotation).astype(bool)] = value
    return mask


@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_masks__from_json_equal_an_independent_rasterisation(shared: Path, split: str) -> None:
    root = shared / "data/coco_subset/COCO"
    tree = CocoTree.open(str(root), split)
    coco = COCO(str(root / f"annotations/instances_{split}.json"))
    images = {Path(image["file_name"]).stem: image for image in coco.imgs.values()}
    entries, refused = tree.list_entries()
    assert (len(entries), refused, tree.class_names) == (100, [], COCO_CLASSES)
    for entry in entries:
        objects, image = json.loads(entry.objects), images[entry.id]
        np.testing.assert_array_equal(
            draw_objects(objects, image["height"], image["width"]), rasterise(coco, image), err_msg=entry.id
        )
