"""Pixel-adaptive refinement: against loops in float64, and what it is for."""

from __future__ import annotations

import numpy as np
import torch

from brnf.config import ParConfig
from brnf.inference.par import AROUND, DISTANCES, PLACE_WEIGHT, WIDTH, neighbour_weights, refine


def weights_of_pixel(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """What each neighbour of a pixel counts for, one at a time."""
    height, width, _ = image.shape
    ends = [(distance * dy, distance * dx) for distance in DISTANCES for dy, dx in AROUND]
    near = np.array([image[np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)] for dy, dx in ends])
    spread = near.std(axis=0, ddof=1) + 1e-8
    unlike = -((np.abs(near - image[row, column]) / spread / WIDTH) ** 2).mean(axis=1)
    lengths = np.array([np.hypot(dy, dx) for dy, dx in ends])
    place = -((lengths / (lengths.std(ddof=1) + 1e-8) / WIDTH) ** 2)
    likeness, nearness = (np.exp(value) / np.exp(value).sum() for value in (unlike, place))
    return (likeness + PLACE_WEIGHT * nearness) / (1 + PLACE_WEIGHT)


def test_neighbour_weights__are_those_of_a_loop_over_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.float64)
    found = neighbour_weights(torch.from_numpy(image).permute(2, 0, 1)[None].double())[0].numpy()
    for row in range(5):
        for column in range(7):
            np.testing.assert_allclose(found[:, row, column], weights_of_pixel(image, row, column), atol=1e-6)


def test_refine__moves_the_border_of_a_blurred_map_to_the_edge_of_the_image() -> None:
    image = np.full((40, 60, 3), 60, np.uint8)
    image[:, 30:] = 200
    image = image + np.random.default_rng(0).integers(0, 10, image.shape, dtype=np.uint8)
    object_map = torch.from_numpy(np.tile(1 / (1 + np.exp(-(np.arange(60) - 27) / 3)), (40, 1)))
    scores = torch.stack([1 - object_map, object_map]).float()[None]
    labels = refine(torch.from_numpy(image).permute(2, 0, 1)[None], scores, ParConfig())[0].argmax(0).numpy()
    truth = np.tile(np.arange(60) >= 30, (40, 1))
    assert (scores[0].argmax(0).numpy() != truth).mean() > 0.03
    assert (labels != truth).mean() < 0.01


def test_refine__of_a_batch_is_that_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8, generator=generator)
    scores = torch.rand(3, 4, 20, 30, generator=generator)
    found = refine(images, scores, ParConfig(iterations=3))
    for index in range(3):
        alone = refine(images[index : index + 1], scores[index : index + 1], ParConfig(iterations=3))
        torch.testing.assert_close(found[index], alone[0])
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3, 20, 30))
