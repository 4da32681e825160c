"""Confusion against torchmetrics, and the ratios against a vector worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from brnf.evaluation.confusion import averaged_classes, count_pixels, metrics


def draw(num_classes: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, num_classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, num_classes, shape)).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    return truth, predicted


def test_metrics__equal_torchmetrics_over_a_split_of_two_images():
    images = [draw(5, (30, 41)), draw(5, (17, 23))]
    confusion = np.sum([count_pixels(truth, predicted, 5) for truth, predicted in images], axis=0)
    oracle = JaccardIndex(task="multiclass", num_classes=5, average="none", ignore_index=255)
    for truth, predicted in images:
        oracle.update(torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    names = ["background", "a", "b", "c", "d"]
    scores = metrics(confusion, names)
    np.testing.assert_allclose(list(scores["iou"].values()), oracle.compute().numpy(), rtol=1e-6)
    assert scores["miou"] == pytest.approx(oracle.compute().mean().item())


def test_count_pixels__agrees_with_a_loop():
    truth, predicted = draw(3, (9, 7))
    expected = np.zeros((3, 3), np.int64)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(count_pixels(truth, predicted, 3), expected)


def test_metrics__vector_worked_by_hand():
    scores = metrics(np.array([[6, 2], [1, 3]]), ["background", "cat"])
    assert scores["iou"]["cat"] == pytest.approx(1 / 2)
    assert scores["fp"]["cat"] == pytest.approx(1 / 3)
    assert scores["fn"]["cat"] == pytest.approx(1 / 6)
    assert scores["miou"] == pytest.approx((6 / 9 + 1 / 2) / 2)
    assert (scores["mean_fp"], scores["mean_fn"]) == (scores["fp"]["cat"], scores["fn"]["cat"])


def test_metrics__ratios_of_a_class_sum_to_one():
    truth, predicted = draw(4, (50, 50))
    scores = metrics(count_pixels(truth, predicted, 4), ["background", "a", "b", "c"])
    for name in scores["iou"]:
        assert scores["iou"][name] + scores["fp"][name] + scores["fn"][name] == pytest.approx(1)


def test_metrics__class_in_neither_is_none_and_left_out_of_the_means():
    confusion = np.array([[4, 0, 0], [1, 3, 0], [0, 0, 0]])
    scores = metrics(confusion, ["background", "cat", "dog"])
    assert scores["iou"]["dog"] is None and scores["fp"]["dog"] is None
    assert scores["miou"] == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert scores["mean_fn"] == pytest.approx(1 / 4)


def test_metrics__classes_choose_the_means_and_nothing_else():
    truth, predicted = draw(4, (50, 50))
    confusion, names = count_pixels(truth, predicted, 4), ["background", "cat", "dog", "cow"]
    everything, some = metrics(confusion, names), metrics(confusion, names, ["cow", "cat"])
    assert some["iou"] == everything["iou"]
    assert some["miou"] == pytest.approx(np.mean([everything["iou"][n] for n in ("background", "cat", "cow")]))
    assert some["mean_fp"] == pytest.approx(np.mean([everything["fp"][n] for n in ("cat", "cow")]))
    assert metrics(confusion, names, []) == everything


def test_averaged_classes__unknown_name_lists_the_classes():
    with pytest.raises(ValueError, match=r"cta.*background, cat, dog"):
        averaged_classes(["background", "cat", "dog"], ["cta"])


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "label is 2 x 3 pixels and the mask 3 x 2"),
        (np.full((2, 2), 7), np.zeros((2, 2)), "mask holds class 7"),
        (np.zeros((2, 2)), np.full((2, 2), 255), "label holds class 255"),
    ],
)
def test_count_pixels__refuses(truth: np.ndarray, predicted: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        count_pixels(truth.astype(np.uint8), predicted.astype(np.uint8), 3)
