"""Guided filter: against a ridge regression solved window by window in float64, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from brnf.config import GuidedConfig
from brnf.inference.guided import guided_filter, inverse_covariance, refine, window_means

RADIUS, EPSILON = 2, 1e-2


def regression(guide: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """Each window's best linear function of the colours, and each pixel's mean over the windows it lies in."""
    height, width = channel.shape
    edge = ((RADIUS, RADIUS), (RADIUS, RADIUS))
    colours, wanted = np.pad(guide, (*edge, (0, 0)), mode="reflect"), np.pad(channel, edge, mode="reflect")
    side, found = 2 * RADIUS + 1, np.zeros((height, width, 4))
    penalty = np.sqrt(EPSILON) * np.eye(3) * side  # of as many terms as the window has pixels
    for row in range(height):
        for column in range(width):
            window = (slice(row, row + side), slice(column, column + side))
            x, y = colours[window].reshape(-1, 3), wanted[window].ravel()
            a = np.concatenate([x - x.mean(axis=0), penalty])
            slope = np.linalg.lstsq(a, np.concatenate([y - y.mean(), np.zeros(3)]), rcond=None)[0]
            found[row, column] = [*slope, y.mean() - slope @ x.mean(axis=0)]
    padded = np.pad(found, (*edge, (0, 0)), mode="reflect")
    means = np.stack([
        [padded[row : row + side, column : column + side].mean(axis=(0, 1)) for column in range(width)]
        for row in range(height)
    ])  # fmt: skip
    return (means[..., :3] * guide).sum(axis=2) + means[..., 3]


def test_guided_filter__equals_a_regression_in_every_window() -> None:
    rng = np.random.default_rng(0)
    guide, channel = rng.random((9, 11, 3)), rng.random((9, 11))
    planes = np.moveaxis(guide, 2, 0).astype(np.float32)
    mean = window_means(planes, RADIUS)
    inverse = inverse_covariance(planes, mean, RADIUS, EPSILON)
    found = guided_filter(planes, mean, inverse, channel.astype(np.float32), RADIUS)
    np.testing.assert_allclose(found, regression(guide, channel), atol=1e-4)


def test_refine__moves_the_border_of_a_blurred_map_to_the_edge_of_the_image() -> None:
    image = np.full((40, 60, 3), 60, np.uint8)
    image[:, 30:] = 200
    image = image + np.random.default_rng(0).integers(0, 10, image.shape, dtype=np.uint8)
    object_map = np.tile(1 / (1 + np.exp(-(np.arange(60) - 27) / 3)), (40, 1))  # its border is 3 pixels off
    scores = np.stack([1 - object_map, object_map]).astype(np.float32)
    labels = refine(image, scores, GuidedConfig()).argmax(axis=0)
    truth = np.tile(np.arange(60) >= 30, (40, 1))
    assert (scores.argmax(axis=0) != truth).mean() > 0.03
    assert (labels != truth).mean() < 0.01


@pytest.mark.parametrize("size", [(40, 60), (10, 15), (80, 120), (1, 1)])
def test_refine__takes_maps_of_any_size_and_gives_shares(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    found = refine(image, rng.random((3, *size), dtype=np.float32), GuidedConfig(rounds=3))
    assert found.shape == (3, *size) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_refine__without_an_edge_in_sight_is_a_blur() -> None:
    image = np.full((30, 30, 3), 128, np.uint8)
    scores = np.random.default_rng(0).random((2, 30, 30), dtype=np.float32)
    found = refine(image, scores, GuidedConfig(rounds=1, sharpness=1.0))
    assert found.std() < 0.3 * scores.std()


def test_refine__of_one_class_is_that_class() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(refine(image, np.full((1, 20, 30), 0.3, np.float32), GuidedConfig()), 1)
