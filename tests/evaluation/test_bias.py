"""Context pixels that labels take for the class they go with."""

from __future__ import annotations

import numpy as np
import pytest

from brnf.evaluation.bias import context_share, count_context


def test_count_context__only_background_pixels_of_tagged_classes_count():
    context = np.array([[1, 1, 1, 2], [1, 2, 2, 0]], np.uint8)
    truth = np.array([[0, 0, 1, 0], [255, 0, 0, 0]], np.uint8)  # an object pixel and an ignored one are no context
    predicted = np.array([[1, 0, 1, 2], [1, 1, 2, 1]], np.uint8)
    np.testing.assert_array_equal(
        count_context(context, truth, predicted, [1], 3)[:, 1:], [[1, 0], [2, 0]]  # class 2 is not tagged
    )
    np.testing.assert_array_equal(count_context(context, truth, predicted, [1, 2], 3)[:, 1:], [[1, 2], [2, 3]])


def test_context_share__means_over_classes_that_have_context():
    share = context_share(np.array([[9, 1, 0, 3], [9, 4, 0, 4]]), ["background", "boat", "cat", "train"])
    assert share["classes"] == {"boat": 0.25, "train": 0.75}
    assert share["mean"] == pytest.approx(0.5)
