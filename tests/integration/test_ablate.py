"""An ablation of three arms on Ray: every image is counted, and the full method's run is a pipeline's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import RECIPE

from brnf.config import load_recipe
from brnf.data.scenes import render_sample

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_ablate__scores_every_image_of_both_splits_for_every_arm(tmp_path: Path, ray_session: None) -> None:
    from brnf.ablation import Ablation
    from brnf.arms import chosen_arms
    from brnf.pipeline import Pipeline

    tree, recipe, out = tmp_path / "tree", tmp_path / "recipe.yaml", str(tmp_path / "out")
    render_sample(str(tree), bias=0.9, random_seed=0, num_train=32, num_val=8)
    recipe.write_text(RECIPE)
    config = load_recipe(str(recipe))
    arms = chosen_arms(["guidance", "full"])
    ablation = Ablation(config=config, root=str(tree), out=out, arms=arms, random_seeds=(0,))
    found = ablation.run()
    images = {
        (run["chosen_on"]["images"], run["reported_on"]["images"]) for arm in found["arms"] for run in arm["runs"]
    }
    assert images == {(32, 8)}
    assert all("context_share" in run["reported_on"] for arm in found["arms"] for run in arm["runs"])
    assert set(found["effects"]) >= {"guidance - base", "full - base", "full - guidance (what flows add)"}
    pipeline = Pipeline(config=config, root=str(tree), out=out)
    pipeline.run()
    assert {outcome.stage for outcome in pipeline.outcomes if outcome.ran} == {"label"}
