"""Paired bootstrap: the observed difference against `metrics`, the interval against a loop, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest

from brnf.evaluation.bootstrap import SCORES, outcomes, paired_differences
from brnf.evaluation.confusion import metrics

NAMES = ["background", "cat", "dog", "cow"]
AVERAGED = [1, 3]


def confusions(rng: np.random.Generator, count: int, right: float) -> np.ndarray:
    """(N, C, C) of images in which about the share `right` of pixels is labelled as it should be."""
    size = len(NAMES)
    chances = np.full((size, size), (1 - right) / (size - 1)) + np.eye(size) * (right - (1 - right) / (size - 1))
    return np.stack([[rng.multinomial(rng.integers(0, 400), row) for row in chances] for _ in range(count)])


def counted(*runs: np.ndarray) -> np.ndarray:
    return np.stack([[outcomes(confusion) for confusion in stack] for stack in runs])


def interval(found: dict[str, float | None]) -> tuple[float, float]:
    assert found["low"] is not None and found["high"] is not None
    return found["low"], found["high"]


def test_difference_and_interval__equal_those_of_a_loop_over_draws() -> None:
    rng = np.random.default_rng(0)
    first, second = confusions(rng, 30, 0.8), confusions(rng, 30, 0.6)
    found = paired_differences(counted(first), counted(second), AVERAGED, draws=300, random_seed=7)

    def scores(stack: np.ndarray) -> np.ndarray:
        scored = metrics(stack.sum(axis=0), NAMES, [NAMES[index] for index in AVERAGED])
        return np.array([scored[name] for name in SCORES])

    weights_rng, chance = np.random.default_rng(7), np.full(30, 1 / 30)
    weights = np.concatenate([weights_rng.multinomial(30, chance, size=size) for size in (256, 44)])
    repeated = (np.repeat(np.arange(30), row) for row in weights)
    draws = np.array([scores(first[images]) - scores(second[images]) for images in repeated])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    observed = scores(first) - scores(second)
    for index, name in enumerate(SCORES):
        assert found[name] == pytest.approx(
            {"difference": observed[index], "low": low[index], "high": high[index]}, abs=1e-12
        )


def test_interval__is_narrow_where_the_same_images_are_hard_for_both() -> None:
    rng = np.random.default_rng(1)
    hard = np.where(rng.random(40) < 0.5, 0.3, 0.9)
    second = np.concatenate([confusions(rng, 1, right) for right in hard])
    first = second + np.eye(len(NAMES), dtype=int) * 10  # a little better everywhere
    paired = paired_differences(counted(first), counted(second), AVERAGED)["miou"]
    unpaired = paired_differences(counted(first), counted(second[rng.permutation(40)]), AVERAGED)["miou"]
    assert min(interval(paired)) > 0 and paired["difference"] == pytest.approx(unpaired["difference"])
    assert np.ptp(interval(paired)) < 0.2 * np.ptp(interval(unpaired))


def test_several_runs__are_averaged_and_need_not_be_as_many() -> None:
    rng = np.random.default_rng(3)
    runs = [confusions(rng, 40, right) for right in (0.9, 0.7, 0.5)]
    single = [paired_differences(counted(run), counted(runs[2]), AVERAGED)["miou"]["difference"] for run in runs]
    both = paired_differences(counted(*runs[:2]), counted(runs[2]), AVERAGED)["miou"]
    assert single[2] == 0 and both["difference"] == pytest.approx(np.mean([value or 0 for value in single[:2]]))
    alone = paired_differences(counted(runs[0]), counted(runs[2]), AVERAGED)["miou"]
    low, high = interval(both)
    assert low < (both["difference"] or 0) < high < (alone["difference"] or 0)


def test_the_same_labels__do_not_differ() -> None:
    same = counted(confusions(np.random.default_rng(2), 5, 0.7))
    found = paired_differences(same, same, AVERAGED)
    assert all(value == {"difference": 0.0, "low": 0.0, "high": 0.0} for value in found.values())


def test_a_class_of_few_images__may_be_missing_from_a_draw() -> None:
    stack = np.zeros((6, 4, 4), np.int64)
    stack[:, 0, 0], stack[0, 3, 3], stack[1:, 1, 1] = 10, 5, 5
    found = paired_differences(counted(stack), counted(stack), [1, 2, 3])
    assert found["miou"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    nothing = paired_differences(counted(stack), counted(stack), [2])["mean_fp"]
    assert nothing == {"difference": None, "low": None, "high": None}
