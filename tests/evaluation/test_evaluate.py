"""Directories of labels scored against directories of shards."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from brnf.evaluation.confusion import count_pixels, metrics
from brnf.evaluation.evaluate import compare, evaluate

from .conftest import CLASS_NAMES, Split, png

KEYS = {"miou", "mean_fp", "mean_fn", "iou", "fp", "fn", "images", "missing", "unmasked", "protocol", "context_share"}


def shifted(split: Split, row: dict[str, Any]) -> np.ndarray:
    """The truth, moved a little."""
    return np.roll(split.truth(row), (4, 7), axis=(0, 1))


def test_evaluate__equals_one_confusion_over_all_images(split: Split):
    labels = split.write_labels(lambda row: shifted(split, row))
    scores = evaluate(labels, split.shards, ["boat"])
    confusion = np.sum([count_pixels(split.truth(row), shifted(split, row), 4) for row in split.rows], axis=0)
    expected = metrics(confusion, CLASS_NAMES, ["boat"])
    assert {key: scores[key] for key in expected} == expected
    assert set(scores) == KEYS and (scores["images"], scores["missing"], scores["unmasked"]) == (11, 0, 0)
    assert 0 < scores["context_share"]["mean"] < 0.5
    assert scores["protocol"]["split"] == "val" and scores["protocol"]["scales"] == [1.0, 0.5]
    assert scores["protocol"]["classes_averaged"] == ["boat"] and scores["protocol"]["truth"] == "SegmentationClass"
    assert json.loads(json.dumps(scores)) == scores


def test_evaluate__perfect_labels_take_no_context(split: Split):
    scores = evaluate(split.write_labels(split.truth), split.shards)
    assert (scores["miou"], scores["mean_fp"], scores["mean_fn"]) == (1.0, 0.0, 0.0)
    assert scores["context_share"] == {"mean": 0.0, "classes": {"boat": 0.0, "train": 0.0}}


def test_evaluate__quarantined_images_are_counted_and_left_out(split: Split):
    lost = split.ids[:2]
    scores = evaluate(split.write_labels(lambda r: None if r["id"] in lost else split.truth(r)), split.shards)
    assert (scores["images"], scores["missing"], scores["miou"]) == (9, 2, 1.0)


def test_evaluate__masks_follow_the_orientation_of_the_image(split: Split):
    row = split.rows[0]
    upright = split.truth(row)
    row |= {"orientation": 6, "mask": png(np.rot90(upright)), "context": png(np.rot90(upright) * 0)}
    split.write_shards()
    labels = split.write_labels(lambda r: upright if r["id"] == row["id"] else split.truth(r))
    assert evaluate(labels, split.shards)["miou"] == 1.0


def test_evaluate__images_without_label_are_named(split: Split):
    labels = split.write_labels(split.truth)
    split.rows += [{**split.rows[0], "id": f"new{n}"} for n in range(7)]
    split.write_shards()
    with pytest.raises(ValueError, match=r"7 of 18 images in .* have no label in .*new0, new1, .* and 2 more"):
        evaluate(labels, split.shards)


def test_evaluate__labels_of_another_size_are_named(split: Split):
    odd = split.ids[3]
    labels = split.write_labels(lambda r: split.truth(r)[:-1] if r["id"] == odd else split.truth(r))
    with pytest.raises(ValueError, match=f"1 of 11 images cannot be scored:\n  {odd}: the label is 90 x 59"):
        evaluate(labels, split.shards)


def test_evaluate__labels_of_another_state_of_the_split_are_refused(split: Split):
    labels = split.write_labels(split.truth, shards_hash="another")
    with pytest.raises(ValueError, match=r"another state of this split.*label these shards again"):
        evaluate(labels, split.shards)


def test_evaluate__labels_of_a_larger_split_are_joined_by_id(split: Split):
    labels = split.write_labels(split.truth, shards_hash="larger", protocol={"split": "train_aug"})
    split.rows = split.rows[1::2]
    split.write_shards()
    scores = evaluate(labels, split.shards)
    assert (scores["images"], scores["miou"], scores["protocol"]["labelled_split"]) == (5, 1.0, "train_aug")


def test_evaluate__labels_of_other_classes_are_refused(split: Split):
    labels = split.write_labels(split.truth, class_names=["background", "train", "boat", "cow"])
    with pytest.raises(ValueError, match="the labels and shards of one data set"):
        evaluate(labels, split.shards)


def test_evaluate__shards_without_masks_are_refused(split: Split):
    labels = split.write_labels(split.truth)
    for row in split.rows:
        row["mask"] = None
    split.write_shards()
    with pytest.raises(ValueError, match="holds no masks"):
        evaluate(labels, split.shards)


def test_evaluate__incomplete_labels_and_unknown_classes_are_refused(split: Split):
    with pytest.raises(ValueError, match="no complete labels"):
        evaluate(split.shards.replace("shards", "nothing"), split.shards)
    with pytest.raises(ValueError, match="cat; the classes are background, boat, train, cow"):
        evaluate(split.write_labels(split.truth), split.shards, ["cat"])


def test_compare__is_the_difference_of_two_evaluations_over_what_both_have_labelled(split: Split):
    lost = split.ids[:2]
    truth = split.write_labels(lambda row: None if row["id"] in lost else split.truth(row), "truth")
    moved = split.write_labels(lambda row: shifted(split, row), "moved")
    found = compare(truth, moved, split.shards)
    assert found["images"] == 9
    same_images = split.write_labels(lambda row: None if row["id"] in lost else shifted(split, row), "rest")
    difference = 1 - evaluate(same_images, split.shards)["miou"]
    assert found["miou"]["difference"] == pytest.approx(difference)
    assert 0 < found["miou"]["low"] <= difference <= found["miou"]["high"]
    assert found["mean_fp"]["high"] < 0 and found["mean_fn"]["high"] < 0


def test_compare__labels_without_a_common_image_are_refused(split: Split):
    first = split.write_labels(lambda row: split.truth(row) if row["id"] in split.ids[:3] else None, "first")
    second = split.write_labels(lambda row: None if row["id"] in split.ids[:3] else split.truth(row), "second")
    with pytest.raises(ValueError, match="no image in common"):
        compare(first, second, split.shards)
