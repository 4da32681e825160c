"""Figures of certainty: by hand, and at their ends."""

from __future__ import annotations

import pytest
import torch

from brnf.inference.certainty import certainty


def test_certainty__counts_close_calls() -> None:
    maps = torch.tensor([[[0.9, 0.5]], [[0.1, 0.45]], [[0.0, 0.0]]])
    found = certainty(maps)
    assert found.mean_top_score == pytest.approx(0.7)
    assert found.uncertain_share == pytest.approx(0.5)
    first = -(0.9 * torch.tensor(0.9).log() + 0.1 * torch.tensor(0.1).log())
    shares = torch.tensor([0.5, 0.45]) / 0.95
    second = -(shares * shares.log()).sum()
    assert found.entropy == pytest.approx(float((first + second) / 2 / torch.tensor(3.0).log()), abs=1e-6)


def test_certainty__of_one_class_has_no_doubt() -> None:
    assert certainty(torch.full((1, 4, 5), 0.25)) == (0.25, 0.0, 0.0)


@pytest.mark.parametrize(("maps", "entropy"), [(torch.full((4, 2, 2), 0.3), 1.0), (torch.eye(3)[:, :1, None], 0.0)])
def test_certainty__of_even_and_of_sure_scores(maps: torch.Tensor, entropy: float) -> None:
    assert certainty(maps).entropy == pytest.approx(entropy, abs=1e-6)


def test_certainty__of_scores_that_are_all_zero_is_a_number() -> None:
    assert certainty(torch.zeros(3, 2, 2)) == (0.0, 1.0, 0.0)
