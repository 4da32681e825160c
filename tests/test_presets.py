"""Presets fit every recipe, and differ where they say."""

from __future__ import annotations

import pytest
import torch

from brnf.config import load_recipe
from brnf.models.brnf import Brnf
from brnf.presets import PRESETS, preset_fields


@pytest.mark.parametrize("recipe", ["demo", "voc_subset_cpu", "voc_resnet50", "coco_resnet50"])
def test_recommended__is_the_recipe_and_literal_changes_every_field_it_names(recipe: str) -> None:
    plain, literal = (load_recipe(recipe, preset_fields(name)) for name in ("recommended", "literal"))
    assert plain == load_recipe(recipe)
    assert literal.brnf.f1.architecture == literal.brnf.f2.architecture == "glow"
    assert (literal.data, literal.base, literal.brnf.optim) == (plain.data, plain.base, plain.brnf.optim)
    for dotted, expected in PRESETS["literal"].items():
        value: object = literal
        for name in dotted.split("."):
            value = getattr(value, name)
        assert value == expected, dotted


def test_literal__reads_the_posterior_at_temperature_one() -> None:
    fields = {"backbone.name": "test_resnet", "backbone.weights": "none", "backbone.side_channels": [4, 4, 4, 4]}
    config = load_recipe("demo", {**preset_fields("literal"), **fields})
    torch.manual_seed(0)
    assert Brnf(config, 3, "brnf").temperature.item() == 1


def test_unknown_preset__is_refused() -> None:
    with pytest.raises(ValueError, match="recommended, literal"):
        preset_fields("paper")
