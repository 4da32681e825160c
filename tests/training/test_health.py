"""Health of a run: what leaves its range is named once, with where and what to do."""

from __future__ import annotations

import pytest
import torch

from brnf.training.health import RANGES, gradient_shares, warnings

WELL = {
    "f1_bits_per_dim": 2.3, "f2_bits_per_dim": 2.4, "posterior_accuracy": 0.9, "depressed_share": 0.1,
    "region_bank_fill": 0.8, "gradient_share_contrast": 0.2, "gradient_share_calibration": 0.1,
}  # fmt: skip


def run(**measures: float) -> list[dict[str, float]]:
    """A run of 100 steps, logged every tenth, with these measures all along."""
    return [{"step": step, **WELL, **measures} for step in range(10, 101, 10)]


def test_well__is_silent_and_every_range_is_watched() -> None:
    assert not warnings(run(), 100)
    assert set(WELL) == {entry.measure for entry in RANGES}
    assert not warnings([{"step": 50, "classification": 9.0}], 100)  # the base has none of these measures


@pytest.mark.parametrize(
    ("measure", "value", "said"),
    [
        ("f1_bits_per_dim", 9.0, "above 3.5"),
        ("f2_bits_per_dim", -5.0, "below -2"),
        ("f1_bits_per_dim", float("nan"), "f1_bits_per_dim is nan"),
        ("posterior_accuracy", 0.3, "below 0.6"),
        ("depressed_share", 0.5, "above 0.35"),
        ("region_bank_fill", 0.0, "below 0.3"),
        ("gradient_share_contrast", 0.9, "above 0.6"),
        ("gradient_share_calibration", 0.9, "above 0.6"),
    ],
)
def test_out_of_range__is_named_once_with_its_remedy(measure: str, value: float, said: str) -> None:
    (line,) = warnings(run(**{measure: value}), 100)
    assert said in line
    assert "brnf." in line.split(";")[-1]  # a field to change


def test_early_in_the_run__a_measure_may_settle() -> None:
    rows = run(depressed_share=0.9)
    assert not warnings(rows[:3], 100)
    (line,) = warnings(rows, 100)
    assert "at step 40" in line


def test_gradient_shares__are_those_of_the_weighted_losses() -> None:
    features, cam = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    terms = {"one": 3 * features.sum() * 0.5**0.5, "other": cam.sum(), "none": torch.tensor(0.0, requires_grad=True)}
    shares = gradient_shares(terms, (features, cam))
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(
        {"gradient_share_one": 0.75, "gradient_share_other": 0.25, "gradient_share_none": 0.0}
    )
