"""Spaces: what is drawn, and what is refused by name before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from brnf.config import load_recipe
from brnf.tune_space import TuneSpace, load_space

SPACES = sorted((Path(__file__).parents[1] / "tune_spaces").glob("*.yaml"))
BUDGET = {"trials": 40, "epochs": 2}


def space(tmp_path: Path, parameters: dict[str, Any], **sections: Any) -> TuneSpace:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"parameters": parameters, "budget": BUDGET} | sections))
    return load_space(str(path))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", ["demo", "voc_subset_cpu", "voc_resnet50", "coco_resnet50"])
def test_shipped_space__fits_every_recipe(path: Path, recipe: str) -> None:
    found = load_space(str(path))
    assert len(found.samples(load_recipe(recipe))) == found.budget.trials


def test_samples__repeat_and_follow_their_distributions(tmp_path: Path) -> None:
    found = space(
        tmp_path,
        {
            "brnf.f1.depth": {"choice": [2, 4]},
            "brnf.guidance_weight": {"uniform": [0.5, 1.0]},
            "brnf.contrast.weight": {"loguniform": [0.001, 0.1]},
        },
    )
    demo = load_recipe("demo")
    drawn = found.samples(demo)
    assert drawn == found.samples(demo)
    assert {values["brnf.f1.depth"] for values in drawn} == {2, 4}
    assert all(0.5 <= values["brnf.guidance_weight"] <= 1 for values in drawn)
    small = sum(values["brnf.contrast.weight"] < 0.01 for values in drawn)
    assert 10 <= small <= 30  # half of them below the geometric mean


def test_trial__has_its_sample_the_budgets_epochs_and_the_objectives_read_out(tmp_path: Path) -> None:
    found = space(tmp_path, {"brnf.f1.depth": {"choice": [6]}}, objective={"scales": [0.5], "flip": False})
    demo = load_recipe("demo")
    config = found.trial_config(demo, {"brnf.f1.depth": 6})
    assert (config.brnf.f1.depth, config.brnf.optim.epochs) == (6, 2)
    assert (config.label.scales, config.label.flip) == ((0.5,), False)
    assert config.brnf.f2 == demo.brnf.f2 and config.base == demo.base


def test_smaller_budget__draws_the_first_samples_of_the_larger(tmp_path: Path) -> None:
    found = space(tmp_path, {"brnf.guidance_weight": {"uniform": [0.5, 1.0]}})
    fewer, demo = found.with_budget(trials=3, epochs=None), load_recipe("demo")
    assert fewer.samples(demo) == found.samples(demo)[:3] and fewer.budget.epochs == 2
    with pytest.raises(ValueError, match=r"budget.trials is 0"):
        found.with_budget(trials=0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"brnf.f1.dept": {"choice": [2]}}, "brnf.f1.dept"),
        ({"brnf.f1.depth": {"choice": [2, 0]}}, "depth is 0"),
        ({"brnf.f1.depth": {"uniform": [2, 4]}}, "brnf.f1.depth"),
        ({"brnf.f1.depth.more": {"choice": [2]}}, "depth has no fields"),
    ],
)
def test_field_that_does_not_fit__is_refused_by_name(tmp_path: Path, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(tmp_path, parameters).samples(load_recipe("demo"))


@pytest.mark.parametrize(
    ("parameters", "sections", "message"),
    [
        ({}, {}, "name one field or more"),
        ({"base.gsc_weight": {"choice": [1]}}, {}, "trials share shards, base and seeds"),
        ({"brnf.optim.epochs": {"choice": [1]}}, {}, "not epochs"),
        ({"brnf.f1.depth": {}}, {}, "exactly one of choice"),
        ({"brnf.f1.depth": {"choice": [1], "uniform": [1, 2]}}, {}, "exactly one of choice"),
        ({"brnf.f1.depth": {"uniform": [2, 1]}}, {}, "lower number first"),
        ({"brnf.f1.depth": {"loguniform": [0, 1]}}, {}, "positive numbers"),
        ({"brnf.f1.depth": {"choice": [1]}}, {"budget": {"trials": 0, "epochs": 1}}, "budget.trials is 0"),
        ({"brnf.f1.depth": {"choice": [1]}}, {"budget": {"trials": 1}}, "budget.epochs"),
        ({"brnf.f1.depth": {"choice": [1]}}, {"objective": {"metric": "loss"}}, "objective.metric"),
        ({"brnf.f1.depth": {"choice": [1]}}, {"searcher": "optuna"}, "searcher"),
    ],
)
def test_space_that_makes_no_sense__is_refused(
    tmp_path: Path, parameters: dict, sections: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space(tmp_path, parameters, **sections)


def test_space_that_is_no_file__names_where_examples_are() -> None:
    with pytest.raises(ValueError, match="tune_spaces/ has examples"):
        load_space("nowhere.yaml")
