"""A sweep, killed in its second trial and run again: finished trials stay, the best becomes a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import RECIPE

from brnf.config import load_recipe
from brnf.data.scenes import render_sample

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LIMIT_S = 600
"""Until the second trial has begun: seven Ray Train and Ray Data runs, each with its own start."""

SPACE = """
parameters:
  brnf.f1.depth: {choice: [2, 4]}
  brnf.guidance_weight: {uniform: [0.1, 1.0]}
objective: {split: train}
budget: {trials: 2, epochs: 2}
"""


def test_tune__killed_and_run_again_repeats_no_finished_epoch(
    tmp_path: Path, kill_when: Callable[..., None], ray_session: None
) -> None:
    from brnf.pipeline import Pipeline
    from brnf.tune_space import load_space

    tree, out, recipe, space = (tmp_path / name for name in ("tree", "out", "recipe.yaml", "space.yaml"))
    render_sample(str(tree), bias=0.9, random_seed=0, num_train=32, num_val=8)
    recipe.write_text(RECIPE)
    space.write_text(SPACE)
    command = [sys.executable, "-m", "brnf", "tune", "--space", str(space), "--config", str(recipe)]
    second = out / "trials/trial-001"
    kill_when([*command, "--root", str(tree), "--out", str(out)], second.exists, LIMIT_S)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/trial-*/epoch-*.json")}
    assert finished and not (out / "best.yaml").exists()

    pipeline = Pipeline(config=load_recipe(str(recipe)), root=str(tree), out=str(out))
    found = pipeline.tune(load_space(str(space)))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [outcome.stage for outcome in pipeline.outcomes if outcome.ran] == ["tune"]
    assert {row["number"] for row in found["trials"]} == {0, 1} and not found["quarantine"]
    scores = [(row["epoch"], row["miou"]) for row in found["trials"]]
    assert scores == sorted(scores, reverse=True)
    best = load_recipe(str(out / "best.yaml"))
    assert best.brnf.f1.depth == found["trials"][0]["values"]["brnf.f1.depth"]
    assert (best.brnf.optim.epochs, best.strict_weak) == (4, False)
    for row in found["trials"]:
        last = out / f"trials/trial-{row['number']:03d}/epoch-{row['epoch']:02d}.json"
        assert json.loads(last.read_text())["miou"] == row["miou"]
