"""Random walk: against the dense matrix, written out pair by pair, and what boundaries are for."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brnf.config import WalkConfig
from brnf.inference.random_walk import RADIUS, affinities, apply_power, transition, walk

BETA = 3.0  # lower than IRN's, so that faint affinities count


def affinity(boundary: np.ndarray, one: tuple[int, int], other: tuple[int, int]) -> float:
    """IRN's rule, from the definition: distances of cells from the line through both."""
    ends = np.array([one, other])
    along = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
    strongest = 0.0
    for row in range(ends[:, 0].min(), ends[:, 0].max() + 1):
        for column in range(ends[:, 1].min(), ends[:, 1].max() + 1):
            y, x = np.array([row, column]) - ends[0]
            if abs(along[0] * x - along[1] * y) < 1 - 1e-9:
                strongest = max(strongest, boundary[row, column])
    return 1 - strongest


def dense_affinities(boundary: np.ndarray, beta: float) -> np.ndarray:
    cells = list(np.ndindex(*boundary.shape))
    matrix = np.eye(len(cells))
    for i, one in enumerate(cells):
        for j, other in enumerate(cells):
            if 0 < np.hypot(one[0] - other[0], one[1] - other[1]) < RADIUS:
                matrix[i, j] = affinity(boundary, one, other) ** beta
    return matrix


def column_normalised(matrix: np.ndarray) -> np.ndarray:
    return matrix / matrix.sum(axis=0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def edges(height: int, width: int) -> np.ndarray:
    """A ring that almost closes, in a little noise."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    ring = np.exp(-((np.hypot(y, x) - height / 3) ** 2))
    return (0.9 * ring + 0.1 * noise(height, width)).clip(0, 1)


def test_affinities__are_those_of_all_pairs_one_by_one() -> None:
    boundary = noise(7, 9)
    found = affinities(boundary)
    assert len(found) == 34
    for (row, column), values in found.items():
        for start in np.ndindex(*boundary.shape):
            end = start[0] + row, start[1] + column
            inside = 0 <= end[0] < 7 and 0 <= end[1] < 9
            expected = affinity(boundary, start, end) if inside else 0.0
            assert values[start] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 2), (9, 3), (7, 5), (5, 6), (4, 8), (6, 9), (5, 10)])
def test_transition__is_the_dense_matrix_on_narrow_grids_too(size: tuple[int, int]) -> None:
    boundary = noise(*size)
    dense = column_normalised(dense_affinities(boundary, BETA))
    np.testing.assert_allclose(transition(boundary, BETA).toarray().T, dense, atol=1e-14)


def test_transition__is_symmetric_affinity_over_rows_that_sum_to_one() -> None:
    matrix = transition(edges(20, 30), 10.0).toarray()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
    degree = 1 / np.diag(matrix)  # the affinity to itself is 1
    np.testing.assert_allclose(degree[:, None] * matrix, (degree[:, None] * matrix).T, atol=1e-13)


def test_apply_power__keeps_a_constant_and_the_mass_weighted_by_degree() -> None:
    matrix = transition(edges(20, 30), 10.0)
    degree, start = 1 / matrix.diagonal(), noise(600)
    np.testing.assert_allclose(apply_power(matrix, np.ones(600), 256), 1, atol=1e-12)
    assert degree @ apply_power(matrix, start, 256) == pytest.approx(degree @ start, rel=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 17, 100, 1001])
def test_apply_power__equals_as_many_products(steps: int) -> None:
    matrix, start = transition(edges(8, 11), 10.0), noise(88)
    expected = start
    for _ in range(steps):
        expected = matrix @ expected
    np.testing.assert_allclose(apply_power(matrix, start, steps), expected, atol=1e-12)


@pytest.fixture(scope="module")
def squared() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boundary, maps (one of them a single cell), and what IRN makes of them: the dense matrix squared eight times."""
    boundary, maps = edges(40, 50), noise(3, 40, 50)
    maps[1] *= np.arange(50) < 20
    maps[2] = 0
    maps[2, 20, 25] = 1
    matrix = transition(boundary, 10.0).toarray().T
    for _ in range(8):
        matrix = matrix @ matrix
    spread = (maps**1.5 * (1 - boundary)).reshape(3, -1) @ matrix
    return boundary, maps, (spread / spread.max()).reshape(maps.shape)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 3e-4)])
def test_walk__equals_the_dense_matrix_squared(squared: tuple[np.ndarray, ...], dtype: type, tolerance: float) -> None:
    boundary, maps, expected = squared
    found = walk(boundary.astype(dtype), maps.astype(dtype), WalkConfig(beta=10.0, steps=256, power=1.5))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_walk__equals_irn_written_out_pair_by_pair() -> None:
    boundary, maps = edges(9, 10), noise(2, 9, 10)
    matrix = np.linalg.matrix_power(column_normalised(dense_affinities(boundary, BETA)), 7)
    spread = ((maps**2 * (1 - boundary)).reshape(2, -1) @ matrix).reshape(2, 9, 10)
    found = walk(boundary, maps, WalkConfig(beta=BETA, steps=7, power=2.0))
    np.testing.assert_allclose(found, spread / spread.max(), atol=1e-13)


@pytest.mark.parametrize("slanted", [False, True])
def test_walk__never_passes_a_wall_but_finds_a_gap(slanted: bool) -> None:
    rows, columns = np.mgrid[:20, :30]
    wall = 10 + rows // 2 if slanted else np.full_like(rows, 15)
    boundary = (columns == wall).astype(np.float32)
    left = (columns < wall).astype(np.float32)
    maps = np.stack([left * noise(20, 30), np.eye(20, 30)]).astype(np.float32)
    maps[1] *= 1 - left
    spread = walk(boundary, maps, WalkConfig(steps=1000))
    assert np.all(spread[0][left == 0] == 0) and np.all(spread[0][left == 1] > 0.5)
    assert np.all(spread[1][left == 1] == 0)
    boundary[8:12] = 0
    assert walk(boundary, maps, WalkConfig(steps=1000))[0][columns > wall].min() > 0.05


def test_walk__is_held_back_more_by_faint_boundaries_with_a_larger_beta() -> None:
    boundary, maps = np.zeros((12, 20)), np.zeros((1, 12, 20))
    boundary[:, 10], maps[:, :, :10] = 0.3, 1
    leaked = [walk(boundary, maps, WalkConfig(beta=beta, steps=4))[0, :, 11:].mean() for beta in (1.0, 4.0, 10.0)]
    assert leaked[0] > 1.5 * leaked[1] > 0 and leaked[1] > 3 * leaked[2] > 0


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 12), st.integers(1, 3), st.sampled_from([1, 2, 255, 256]))
def test_walk__of_anything_in_range_stays_in_range(
    data: st.DataObject, height: int, width: int, classes: int, steps: int
) -> None:
    values = st.floats(0, 1, width=32)
    boundary = data.draw(arrays.arrays(np.float32, (height, width), elements=values))
    maps = data.draw(arrays.arrays(np.float32, (classes, height, width), elements=values))
    spread = walk(boundary, maps, WalkConfig(steps=steps))
    assert spread.shape == maps.shape and spread.dtype == np.float32
    assert np.isfinite(spread).all() and spread.min() >= 0
    assert spread.max() in (0, 1)


def test_walk__leaves_an_empty_map_empty() -> None:
    maps = np.stack([np.zeros((10, 12)), noise(10, 12)]).astype(np.float32)
    spread = walk(edges(10, 12).astype(np.float32), maps, WalkConfig())
    assert not spread[0].any() and spread[1].max() == 1
