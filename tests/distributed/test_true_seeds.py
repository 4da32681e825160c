"""Seeds made of masks: shares of each cell's pixels, ignored ones left out."""

from __future__ import annotations

import cv2
import numpy as np

from brnf.data.seeds import decode_seed
from brnf.distributed.true_seeds import true_seed


def test_true_seed__gives_each_cell_the_shares_of_its_classes() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 3
    mask[0, 0:3] = 255
    mask[4:, 8:] = 255
    encoded = cv2.imencode(".png", mask)[1].tobytes()
    row = {"mask": encoded, "orientation": 1, "width": 12, "height": 8, "image_labels": [3]}
    keys, scores = decode_seed(true_seed(row))
    assert keys.tolist() == [0, 3]
    np.testing.assert_allclose(scores[0], [[1, 0.5, 0], [1, 0.5, 0]])
    np.testing.assert_allclose(scores[1], [[0, 0.5, 1], [0, 0.5, 0]])  # the last cell is all ignored: no guidance


def test_true_seed__without_a_mask_is_no_guidance() -> None:
    row = {"mask": None, "orientation": 1, "width": 5, "height": 8, "image_labels": [3]}
    keys, scores = decode_seed(true_seed(row))
    assert keys.tolist() == [0] and scores.shape == (1, 2, 2) and not scores.any()
