"""Dense CRF: against mean field over all pairs of pixels in float64, what it is for, and what it costs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.special import softmax

from brnf.config import CrfConfig, ReadOutConfig
from brnf.inference.crf import CERTAINTY, PRESETS, crf
from brnf.inference.refiners import check_refiners

SIZE = (18, 24)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """Three grounds with noise, and blurred scores of them."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(SIZE)
    truth = (columns > 11).astype(int) + ((rows > 8) & (columns > 11))
    image = np.array([[40, 60, 80], [200, 90, 60], [90, 200, 220]])[truth] + rng.integers(-9, 10, (*SIZE, 3))
    scores = 0.6 * np.stack([truth == label for label in range(3)]) + 0.4 * rng.random((3, *SIZE))
    return image.clip(0, 255).astype(np.uint8), scores.astype(np.float32)


def all_pairs(image: np.ndarray, scores: np.ndarray, config: CrfConfig) -> np.ndarray:
    """Mean field with the kernels of all pairs, normalised symmetrically, a pixel with itself among them."""
    kernels = PRESETS[config.preset]
    place = np.indices(SIZE).reshape(2, -1).T.astype(float)
    color = image.reshape(-1, 3).astype(float)
    energy = np.zeros((len(place), len(place)))
    for features, weight in (
        (place / kernels.place, kernels.place_weight),
        (np.hstack([place / kernels.far, color / kernels.color]), kernels.color_weight),
    ):
        kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        scale = 1 / np.sqrt(kernel.sum(axis=1))
        energy += weight * scale[:, None] * kernel * scale[None]
    classes = len(scores)
    if kernels.hard:
        start = np.full(scores.shape, (1 - CERTAINTY) / (classes - 1))
        np.put_along_axis(start, scores.argmax(axis=0)[None], CERTAINTY, axis=0)
    else:
        start = softmax(config.sharpness * scores.astype(float), axis=0)
    unary = np.log(start).reshape(classes, -1)
    found = softmax(unary, axis=0)
    for _ in range(config.iterations):
        found = softmax(unary + found @ energy, axis=0)
    return found.reshape(scores.shape)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_crf__is_near_mean_field_over_all_pairs(preset: str) -> None:
    config, (image, scores) = CrfConfig(preset=preset), picture()  # pyright: ignore[reportArgumentType]
    found, wanted = crf(image, scores, config), all_pairs(image, scores, config)
    assert (found.argmax(axis=0) == wanted.argmax(axis=0)).mean() > 0.98
    assert np.abs(found - wanted).mean() < 0.05  # the package's lattice is an approximation
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-4)


def test_crf__mends_labels_that_the_colours_speak_against() -> None:
    image, scores = picture()
    truth = np.stack([scores[label] > 0.5 for label in range(3)]).argmax(axis=0)
    spoiled = scores.copy()
    spoiled[:, 4:7, 4:7] = scores[[1, 0, 2], 4:7, 4:7]
    found = crf(image, spoiled, CrfConfig()).argmax(axis=0)
    assert (spoiled.argmax(axis=0) != truth)[4:7, 4:7].mean() > 0.9
    assert (found != truth).mean() < 0.02


def test_crf__of_one_class_is_that_class() -> None:
    image, scores = picture()
    np.testing.assert_array_equal(crf(image, scores[:1], CrfConfig()), np.ones((1, *SIZE), np.float32))


def test_crf__takes_an_image_of_another_size() -> None:
    image, scores = picture()
    larger = image.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(crf(larger, scores, CrfConfig()), crf(image, scores, CrfConfig()), atol=1e-4)


def test_check_refiners__without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ValueError, match=r"pip install 'brnf\[crf\]'"):
        check_refiners(ReadOutConfig(refine="guided+crf"))
    check_refiners(ReadOutConfig(refine="guided"))
