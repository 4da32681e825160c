"""What an ablation compares: arms over a recipe, and ways of reading by family."""

from __future__ import annotations

import pytest

from brnf.arms import ARMS, BASE, FULL, PLAIN, arm_config, chosen_arms, indices, ways
from brnf.config import ReadOutConfig, load_recipe, overlay


@pytest.mark.parametrize("recipe", ["demo", "voc_subset_cpu", "voc_resnet50"])
def test_arms__differ_in_what_brnf_trains_with_and_in_nothing_else(recipe: str) -> None:
    config = load_recipe(recipe)
    made = {arm.name: arm_config(config, arm) for arm in ARMS if arm.name != BASE}
    assert made[FULL] == config
    for name, arm in made.items():
        assert arm.brnf.optim == config.brnf.optim and arm.base == config.base and arm.label == config.label, name
    assert made["likelihood"].brnf.denoise.score == "likelihood" and made["ratio"].brnf.denoise.score == "ratio"
    assert made["likelihood"].brnf.denoise.enabled and made["ratio"].brnf.denoise.enabled
    off = overlay(config, {"brnf.denoise.enabled": False, "brnf.denoise.floor": 0.7})
    unlike = {arm.name: arm_config(off, arm) for arm in ARMS}
    assert unlike["denoise"] == unlike["calibration"] != unlike["ratio"] and unlike[FULL] == off
    guided = made["guidance"].brnf
    assert (guided.calibration.weight, guided.denoise.enabled, guided.contrast.weight) == (0, False, 0)
    other = arm_config(overlay(config, {"brnf.denoise.floor": 0.7, "brnf.contrast.weight": 0.3}), ARMS[2])
    assert ARMS[2].name == "guidance" and other == made["guidance"]
    assert guided.guidance_weight > 0 == made["longer"].brnf.guidance_weight


def test_every_arm__is_compared_with_one_that_comes_before_it() -> None:
    before: list[str] = []
    for arm in ARMS:
        assert arm.against in before or arm.name == BASE
        before.append(arm.name)


def test_chosen_arms__keep_their_order_and_the_base() -> None:
    assert [arm.name for arm in chosen_arms(["full", "guidance"])] == ["base", "guidance", "full"]
    assert chosen_arms([]) == list(ARMS)
    with pytest.raises(ValueError, match="e1; the arms are base, longer"):
        chosen_arms(["e1"])


def test_ways__have_the_recipes_scales_no_refinement_and_the_plain_families_first() -> None:
    read_out = ReadOutConfig(scales=(1.0, 0.5), refine="guided")
    families = ways(read_out)
    every = [way for family in families.values() for way in family]
    assert {(way.scales, way.flip, way.refine) for way in every} == {((1.0, 0.5), True, "none")}
    assert len(set(every)) == len(every)
    other = ReadOutConfig(scales=(1.0, 0.5), maps="fusion", fusion=(1, 0, 1), posterior_background=0.1)
    assert ways(other) == families
    plain = indices(read_out, PLAIN)
    assert plain == list(range(len(plain)))
    assert all(way.maps == "prototype" or (way.maps == "fusion" and way.fusion[2] == 0) for way in every[: len(plain)])
    assert [every[index] for index in indices(read_out, ["posterior"])] == families["posterior"]
