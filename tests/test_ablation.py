"""Bookkeeping of the ablation: what is trained and scored, once; and what its tables are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Stages

from brnf.ablation import Ablation
from brnf.arms import ARMS, chosen_arms, ways
from brnf.config import load_recipe
from brnf.tables import ablation_table

SPLITS = ("train", "val")


def ablate(stages: Stages, out: Path, overrides: dict[str, Any] | None = None, **options: Any) -> list[str]:
    """Run an ablation of the demo's recipe and say which stages worked."""
    stages.calls.clear()
    given = {"arms": list(ARMS), "random_seeds": (0,)} | options
    Ablation(config=load_recipe("demo", overrides), root="data", out=str(out), **given).run()
    return list(stages.calls)


def scored(run: str) -> list[str]:
    return [f"score {run} {split}" for split in SPLITS]


def test_ablation__trains_and_scores_every_arm_once(stages: Stages, tmp_path: Path) -> None:
    done = ablate(stages, tmp_path)
    # The demo does not clean seeds, so that arm is guidance; its BSDNF is by ratio.
    arms = [arm.name for arm in ARMS[1:-1] if arm.name not in ("clean", "denoise")]
    assert done[:4] == ["prepare train", "prepare val", "base", "seeds"]
    assert done[4:6] == scored("base") and done[-3:] == ["brnf", *scored("brnf")]
    assert [call for call in done if call in arms] == arms
    assert stages.sessions == 1
    assert ablate(stages, tmp_path) == [] and stages.sessions == 1


def test_ablation__guidance_is_by_base_seeds_even_where_the_recipe_cleans_them(stages: Stages, tmp_path: Path) -> None:
    done = ablate(stages, tmp_path, {"clean.enabled": True}, arms=chosen_arms(["guidance", "clean"]))
    assert [call for call in done if not call.startswith(("prepare", "score"))] == [
        "base", "seeds", "guidance", "clean", "clean-seeds", "clean",
    ]  # fmt: skip
    arms = [tmp_path / "arms" / name for name in ("guidance", "clean")]
    guided, cleaned = (json.loads((arm / "config.json").read_text()) for arm in arms)
    assert guided["inputs"]["seeds"] != cleaned["inputs"]["seeds"]


def test_ablation__shares_what_a_pipeline_has_made(stages: Stages, tmp_path: Path) -> None:
    from brnf.pipeline import Pipeline

    Pipeline(config=load_recipe("demo"), root="data", out=str(tmp_path)).run()
    assert ablate(stages, tmp_path, arms=chosen_arms(["full"])) == [*scored("base"), *scored("brnf")]


def test_ablation__stopped_in_an_arm_goes_on_there(stages: Stages, tmp_path: Path) -> None:
    stages.dies_in = "likelihood"
    with pytest.raises(KeyboardInterrupt):
        ablate(stages, tmp_path)
    stages.dies_in = None
    assert ablate(stages, tmp_path)[0] == "likelihood"


def test_ablation__arms_that_the_recipe_makes_the_same_are_run_once(stages: Stages, tmp_path: Path) -> None:
    done = ablate(stages, tmp_path, {"brnf.calibration.weight": 0.0, "brnf.contrast.sampled_size": 0})
    assert {"guidance", "contrast"} <= set(done) and not {"calibration", "brnf"} & set(done)
    effects = json.loads((tmp_path / "ablation.json").read_text())["effects"]
    assert effects["calibration - clean"]["miou"]["difference"] == 0


def test_ablation__bsdnf_is_measured_where_the_recipe_leaves_it_off(stages: Stages, tmp_path: Path) -> None:
    done = ablate(stages, tmp_path, {"brnf.denoise.enabled": False})
    assert {"likelihood", "ratio", "contrast", "brnf"} <= set(done) and "denoise" not in done
    effects = json.loads((tmp_path / "ablation.json").read_text())["effects"]
    assert effects["denoise - calibration"]["miou"]["difference"] == 0 and "contrast - denoise" in effects


def test_ablation__more_random_seeds_run_base_guidance_and_full(stages: Stages, tmp_path: Path) -> None:
    done = ablate(stages, tmp_path, random_seeds=(0, 3))
    again = done[done.index("brnf") + 3 :]
    assert again == ["base", "seeds", *scored("base"), "guidance", *scored("guidance"), "brnf", *scored("brnf")]
    assert (tmp_path / "random-seed-3" / "brnf").is_dir() and not (tmp_path / "random-seed-3" / "shards").exists()
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert found["effects"]["full - base"]["random_seeds"] == 2
    assert found["effects"]["longer - base"]["random_seeds"] == 1


def test_ablation__base_is_read_without_a_flow_and_the_table_says_how(stages: Stages, tmp_path: Path) -> None:
    ablate(stages, tmp_path, arms=chosen_arms(["guidance", "full"]))
    found = json.loads((tmp_path / "ablation.json").read_text())
    read = {(arm["name"], arm["read"]) for arm in found["arms"]}
    assert ("base", "without flow") in read and ("base", "any") not in read and ("full", "posterior") in read
    base = json.loads((tmp_path / "scores" / "base" / "val" / "manifest.json").read_text())
    families = ways(load_recipe("demo").label)
    assert len(base["read_outs"]) == len(families["prototype"]) + len(families["prototype and classifier"])
    lines = ablation_table(found)
    assert sum("background factor" in line for line in lines) >= 3 and any("full - base" in line for line in lines)
    assert (tmp_path / "ablation.png").exists()


@pytest.mark.parametrize("options", [{"choose_split": "val"}, {"random_seeds": ()}])
def test_ablation__refuses_what_makes_no_sense(stages: Stages, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ablate(stages, tmp_path, **options)
