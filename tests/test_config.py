"""Configuration: recipes, overrides, refusals that name field, value and remedy, and the hash."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from brnf.config import RunConfig, as_dict, config_hash, load_recipe, parse, recipe_path

RECIPES = sorted(recipe_path("demo").parent.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe__is_valid_and_says_how_it_is_run(path: Path) -> None:
    config = load_recipe(path.stem)
    header = "\n".join(line for line in path.read_text().lower().splitlines() if line.startswith("#"))
    assert config.data.score_split is None or config.data.score_split in config.data.label_splits
    for entry in (r"\bbrnf (demo|pipeline|train) ", "hardware:", "(hours|time)", "score"):
        assert re.search(entry, header), f"the header of {path.name} says nothing like {entry!r}"


def test_load_recipe__by_name_and_by_path_are_the_same() -> None:
    assert load_recipe("demo") == load_recipe(str(recipe_path("demo")))


def test_load_recipe__overrides_win_over_recipe_and_recipe_over_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("brnf:\n  f1: {depth: 6, width: 32}\n")
    config = load_recipe(str(recipe), {"brnf.f1.depth": 8, "base.optim.epochs": 2})
    assert (config.brnf.f1.depth, config.brnf.f1.width) == (8, 32)
    assert config.base.optim.epochs == 2
    assert config.brnf.f1.clamp == RunConfig().brnf.f1.clamp


def test_load_recipe__numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base:\n  optim: {weight_decay: 1e-3}\n")
    assert load_recipe(str(recipe)).base.optim.weight_decay == 1e-3


def test_load_recipe__unknown_name_lists_the_recipes() -> None:
    with pytest.raises(ValueError, match=r"'nothing'.*demo.*voc_resnet50"):
        load_recipe("nothing")


def test_load_recipe__refuses_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    recipe = tmp_path / "list.yaml"
    recipe.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match=r"does not hold a mapping"):
        load_recipe(str(recipe))


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"brnf": {"f1": {"depth": 0}}}, ["brnf.f1", "depth", "0", "give 1 or more"]),
        ({"brnf": {"f1": {"dept": 4}}}, ["brnf.f1.dept", "4"]),
        ({"base": {"optim": {"epochs": "many"}}}, ["base.optim.epochs", "'many'", "integer"]),
        ({"data": {"part_rows": 100, "unit_rows": 32}}, ["data.part_rows", "100", "multiple of data.unit_rows (32)"]),
        ({"data": {"score_split": "val", "label_splits": ["train"]}}, ["data.label_splits", "'val'"]),
        ({"seeds": {"maps": "posterior"}}, ["seeds.maps", "posterior", "classifier or prototype"]),
        ({"compute": {"num_workers": 3}}, ["compute.num_workers", "3", "divisor"]),
        ({"augment": {"resize_long": [640, 320]}}, ["augment.resize_long", "(640, 320)", "low <= high"]),
        ({"brnf": {"schedule": {"start_flows": 0.5, "start_use": 0.2}}}, ["brnf.schedule.start_use", "0.2"]),
        ({"backbone": {"output_stride": 12}}, ["backbone.output_stride", "12", "8, 16 or 32"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_parse__refusal_names_field_value_and_remedy(values: dict, parts: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        parse(values)
    for part in parts:
        assert part in str(refusal.value)


def test_parse__names_every_wrong_field_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)random_seed.*backbone\.nam"):
        parse({"random_seed": "x", "backbone": {"nam": "resnet50"}})


def test_as_dict__round_trips_through_plain_values() -> None:
    config = load_recipe("demo", {"label.scales": [1.0, 0.5], "random_seed": 5})
    assert parse(as_dict(config)) == config


def test_config_hash__ignores_machines_and_nothing_else() -> None:
    config = load_recipe("demo")
    more_workers = dataclasses.replace(config, compute=dataclasses.replace(config.compute, num_workers=2))
    other_flow = load_recipe("demo", {"brnf.f2.noise": 0.06})
    assert config_hash(more_workers, "compute") == config_hash(config, "compute")
    assert config_hash(more_workers) != config_hash(config)
    assert config_hash(other_flow, "compute") != config_hash(config, "compute")
