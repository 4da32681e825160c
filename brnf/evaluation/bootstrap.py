"""Whether one way of labelling is better than another: paired bootstrap over images.

Both are scored on the same images, so an image that is hard for both moves both scores and says little of the
difference. Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13 (percentile intervals).

R runs, N images, C classes with background at 0, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brnf.data.schema import BACKGROUND

SCORES = ("miou", "mean_fp", "mean_fn")
LEVEL = 0.95
AT_ONCE = 256
"""Draws computed together: with 40,000 images of 81 classes their weights take 80 MB."""


def outcomes(confusion: np.ndarray) -> np.ndarray:
    """Hits, false pixels and missed pixels of each class, int64 (3, C), of a confusion (C, C) whose rows are truth."""
    hits = np.diagonal(confusion)
    return np.stack([hits, confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits])


def paired_differences(
    first: np.ndarray, second: np.ndarray, averaged: Sequence[int], *, draws: int = 2000, random_seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """How much the first scores above the second, with an interval.

    Args:
        first: int64 (R, N, 3, C), `outcomes` of every image by each of R runs, such as those of several random seeds;
            a score is the mean of the runs' scores.
        second: The same images in the same order; runs may be others and as many as wanted.
        averaged: Foreground classes that means are taken over.
        draws: B, samples of N images with replacement, the same for both.
        random_seed: Draws them.

    Returns:
        For `miou`, `mean_fp`, `mean_fn`: `difference` over all images, and `low` and `high`, between which 95 % of the
        draws' differences lie. From -1 to 1; None where no class has a score.
    """
    assert first.shape[1:] == second.shape[1:], (first.shape, second.shape)
    rng, count = np.random.default_rng(random_seed), first.shape[1]
    once = np.ones((1, count))
    observed = _mean_of_runs(first, once, averaged) - _mean_of_runs(second, once, averaged)
    drawn = []
    for begin in range(0, draws, AT_ONCE):
        weights_BN = rng.multinomial(count, np.full(count, 1 / count), size=min(AT_ONCE, draws - begin)).astype(float)
        drawn.append(_mean_of_runs(first, weights_BN, averaged) - _mean_of_runs(second, weights_BN, averaged))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    found = {"difference": observed[0], "low": low, "high": high}
    return {
        name: {part: None if np.isnan(values[index]) else float(values[index]) for part, values in found.items()}
        for index, name in enumerate(SCORES)
    }


def _mean_of_runs(runs_RN3C: np.ndarray, weights_BN: np.ndarray, averaged: Sequence[int]) -> np.ndarray:
    """SCORES (B, 3) of images that count as often as their weights say, averaged over runs."""
    return np.mean([mean_scores(np.tensordot(weights_BN, run, axes=1), averaged) for run in runs_RN3C], axis=0)


def mean_scores(totals_B3C: np.ndarray, averaged: Sequence[int]) -> np.ndarray:
    """SCORES (B, 3) of B sums of outcomes; a class in neither truth nor labels is left out of a sum's means."""
    union_BC = totals_B3C.sum(axis=1)
    shares_3BC = np.moveaxis(totals_B3C / np.where(union_BC > 0, union_BC, 1)[:, None], 1, 0)
    columns = ([BACKGROUND, *averaged], averaged, averaged)
    means = []
    for share_BC, chosen in zip(shares_3BC, columns, strict=True):
        count_B = (union_BC[:, chosen] > 0).sum(axis=1)
        means.append(share_BC[:, chosen].sum(axis=1) / np.where(count_B > 0, count_B, np.nan))
    return np.stack(means, axis=1)
