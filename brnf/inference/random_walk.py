"""Random walk of class maps over an image, stopped by its boundaries, without the matrix of all pairs.

Ahn, Cho, Kwak 2019 (IRN), and misc/indexing.py of its public code: the affinity of two near cells is one minus the
strongest boundary between them, and class maps are spread by a power of the transition matrix. IRN squares the dense
matrix; here it keeps its 69 bands, and the power is applied to each map as a Chebyshev series, with a third of the
multiplications that the steps would take.

K maps, h w cells, N = h w.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.sparse import dia_array

from brnf.affinity import straight_paths
from brnf.config import WalkConfig

RADIUS = 5
"""Cells; pairs nearer than this are connected (IRN)."""

Cell = tuple[int, int]
"""Row and column, from where a path starts."""


def walk(boundary: np.ndarray, maps: np.ndarray, config: WalkConfig) -> np.ndarray:
    """Spread class maps within boundaries.

    As in SIPE's make_seg_labels.py, maps are taken to a power, then lose what lies on boundaries, as in IRN, then walk,
    and are divided by the maximum of all of them.

    Args:
        boundary: Float (h, w) in [0, 1]; its type is what is computed in.
        maps: Float (K, h, w) in [0, 1].
        config: beta, steps, power.

    Returns:
        (K, h, w) of the boundary's type, in [0, 1].
    """
    assert boundary.shape == maps.shape[1:], (boundary.shape, maps.shape)
    matrix = transition(boundary, config.beta)
    starts = maps.astype(boundary.dtype) ** config.power * (1 - boundary)
    # One map at a time: SciPy multiplies bands by a vector, whose cells are neighbours in memory, several times faster.
    spread = np.stack([apply_power(matrix, start.ravel(), config.steps) for start in starts]).reshape(maps.shape)
    spread = spread.clip(min=0)  # all a series promises is to be within rounding of the power
    return spread / (spread.max() or 1)


def transition(boundary: np.ndarray, beta: float, radius: int = RADIUS) -> dia_array:
    """Transition matrix of the walk: affinities to the power of beta, 1 to itself, over their sum.

    Args:
        boundary: Float (h, w) in [0, 1].
        beta: How much faint boundaries stop (IRN: 10).
        radius: In cells.

    Returns:
        Sparse (N, N) of the boundary's type, whose rows sum to one: times a map as a column, it gives every cell the
        mean of the cells it can reach. IRN's has columns that sum to one, and is multiplied from the left.
    """
    bands = {0: np.ones(boundary.size, boundary.dtype)}
    for (row, column), affinity in affinities(boundary, radius).items():
        offset, values = row * boundary.shape[1] + column, (affinity**beta).ravel()
        # A band holds each value at its column: the end's on the way there, the start's on the way back. In a narrow
        # grid ends may share a band, but no place in it, for they are different cells.
        bands[offset] = bands.get(offset, 0) + np.roll(values, offset)
        bands[-offset] = bands.get(-offset, 0) + values
    data, offsets = np.stack(list(bands.values())), np.array(list(bands))
    shape = (boundary.size, boundary.size)
    total_N = dia_array((data, offsets), shape=shape) @ np.ones(boundary.size)  # in float64: rounding would add up
    rows = np.arange(boundary.size) - offsets[:, None]
    data /= total_N.take(rows, mode="clip")  # bands are 0 beyond the matrix
    return dia_array((data, offsets), shape=shape)


def affinities(boundary: np.ndarray, radius: int = RADIUS) -> dict[Cell, np.ndarray]:
    """One minus the strongest boundary on the way from each cell to each end of `straight_paths`.

    Args:
        boundary: Float (h, w) in [0, 1].
        radius: In cells.

    Returns:
        (h, w) for each end; 0 where it lies outside.
    """
    height, width = boundary.shape
    reach = radius - 1
    padded = np.pad(boundary, ((0, reach), (reach, reach)), constant_values=1)

    def seen_from_each(cell: Cell) -> np.ndarray:
        return padded[cell[0] : cell[0] + height, cell[1] + reach : cell[1] + reach + width]

    return {
        path.end: 1 - functools.reduce(np.maximum, map(seen_from_each, path.cells)) for path in straight_paths(radius)
    }


def apply_power(matrix: dia_array, vector: np.ndarray, steps: int) -> np.ndarray:
    """A transition matrix to the power of `steps`, times a vector, in about sqrt(33 steps) products (float32).

    x^steps is the mean of the Chebyshev polynomials of x whose degree is the distance from 0 after so many steps of 1
    to either side. As affinities are symmetric, eigenvalues lie in [-1, 1], where no such polynomial exceeds 1, so that
    degrees of a chance below rounding can be left out.

    Source: Sachdeva, Vishnoi 2013, "Faster Algorithms via Approximation Theory", theorem 3.3 and section 8.

    Args:
        matrix: (N, N), from `transition`.
        vector: Float (N,).
        steps: 0 or more.
    """
    rounding = float(np.finfo(vector.dtype).eps)
    degree = min(steps, math.ceil(math.sqrt(2 * steps * math.log(2 / rounding))))  # Hoeffding's bound
    before, polynomial = matrix @ vector, vector  # of degrees -1, which is that of degree 1, and 0
    result = np.zeros_like(vector)
    for distance in range(degree + 1):
        result += _chance(distance, steps) * polynomial
        before, polynomial = polynomial, 2 * (matrix @ polynomial) - before
    return result


def _chance(distance: int, steps: int) -> float:
    """Of being so far from the start, on either side, after steps of 1 to either side."""
    if (steps - distance) % 2:
        return 0.0
    return math.comb(steps, (steps - distance) // 2) / 2**steps * (2 if distance else 1)
