"""Bookkeeping of the pipeline and of single stages, with stage functions that only write what they were given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Stages

from brnf.chain import STAGES
from brnf.config import load_recipe
from brnf.data.schema import CONFIG, DONE
from brnf.pipeline import Pipeline
from brnf.stage import Stage, run_stage
from brnf.stages import label_stage, train_stage

EVERYTHING = ["prepare train", "prepare val", "base", "seeds", "brnf", "label val", "label base", "evaluate", "report"]


def bring(stages: Stages, out: Path, overrides: dict[str, Any] | None = None, **options: Any) -> list[str]:
    """Run the pipeline of the demo's recipe and say which stages worked."""
    stages.calls.clear()
    Pipeline(config=load_recipe("demo", overrides), root="data", out=str(out), **options).run()
    return list(stages.calls)


def test_pipeline__first_run_does_every_stage_in_order_in_one_session(stages: Stages, tmp_path: Path) -> None:
    assert bring(stages, tmp_path / "out") == EVERYTHING
    assert stages.sessions == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "shards", "base", "seeds", "brnf", "labels", "report.html", "metrics.json",
    }  # fmt: skip


def test_pipeline__second_run_does_nothing_and_does_not_start_ray(stages: Stages, tmp_path: Path) -> None:
    bring(stages, tmp_path)
    before = (tmp_path / "metrics.json").read_bytes()
    assert bring(stages, tmp_path) == []
    assert stages.sessions == 1
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "redone"),
    [
        ({"compute.num_workers": 2, "compute.log_every": 10}, []),
        ({"label.flip": False}, ["label val", "label base", "evaluate", "report"]),
        ({"brnf.f1.depth": 6}, ["brnf", "label val", "evaluate", "report"]),
        ({"seeds.flip": False}, ["seeds", "brnf", "label val", "evaluate", "report"]),
        ({"cam.background_factor": 1.0}, EVERYTHING[2:]),
        ({"random_seed": 1}, EVERYTHING[2:]),
        ({"data.score_classes": ["boat"]}, ["evaluate", "report"]),
    ],
    ids=str,
)
def test_pipeline__a_changed_field_redoes_its_stage_and_what_follows_from_it(
    stages: Stages, tmp_path: Path, overrides: dict[str, Any], redone: list[str]
) -> None:
    bring(stages, tmp_path)
    assert bring(stages, tmp_path, overrides) == redone
    assert bring(stages, tmp_path, overrides) == []


def test_pipeline__cleaned_seeds_guide_brnf_and_are_made_from_base_and_seeds(stages: Stages, tmp_path: Path) -> None:
    clean = {"clean.enabled": True}
    cleaning = ["clean", "clean-seeds"]
    after = EVERYTHING[EVERYTHING.index("brnf") :]
    without_base = [call for call in after if call != "label base"]
    bring(stages, tmp_path)
    assert bring(stages, tmp_path, clean) == [*cleaning, *without_base]
    assert bring(stages, tmp_path, clean) == []
    assert bring(stages, tmp_path, {**clean, "brnf.guidance_weight": 0.5}) == without_base
    assert bring(stages, tmp_path, {**clean, "clean.flow.depth": 6}) == [*cleaning, *without_base]
    assert bring(stages, tmp_path, clean, force_from="clean") == [*cleaning, *after]


def test_pipeline__changed_source_redoes_everything(stages: Stages, tmp_path: Path) -> None:
    bring(stages, tmp_path)
    stages.source = "one photograph more"
    assert bring(stages, tmp_path) == EVERYTHING


@pytest.mark.parametrize("stage", STAGES)
def test_pipeline__force_from_redoes_that_stage_and_later_ones(stages: Stages, tmp_path: Path, stage: str) -> None:
    bring(stages, tmp_path)
    first = {"prepare": "prepare train", "label": "label val", "clean": "brnf"}.get(stage, stage)  # nothing to clean
    assert bring(stages, tmp_path, force_from=stage) == EVERYTHING[EVERYTHING.index(first) :]


@pytest.mark.parametrize("stage", ["prepare val", "base", "seeds", "brnf", "label val", "label base"])
def test_pipeline__killed_in_a_stage_goes_on_there_with_what_it_has(
    stages: Stages, tmp_path: Path, stage: str
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    bring(stages, undisturbed)
    stages.dies_in = stage
    with pytest.raises(KeyboardInterrupt):
        bring(stages, killed)
    stages.dies_in = None
    assert bring(stages, killed) == EVERYTHING[EVERYTHING.index(stage) :]
    assert (killed / "metrics.json").read_bytes() == (undisturbed / "metrics.json").read_bytes()
    pieces = [path for path in killed.rglob("piece-*") if path.read_text() == stage]
    assert len(pieces) == 2, "what the killed run had written was not kept"


def test_pipeline__never_deletes_what_it_did_not_write(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex.*empty or new"):
        bring(stages, tmp_path, force_from="prepare")
    assert (tmp_path / "base" / "thesis.tex").read_text() == "years of work"


def test_pipeline__counts_what_was_refused(stages: Stages, tmp_path: Path) -> None:
    pipeline = Pipeline(config=load_recipe("demo"), root="data", out=str(tmp_path))
    pipeline.run()
    assert {Path(outcome.out).name: outcome.refused for outcome in pipeline.outcomes if outcome.refused} == {"train": 1}


def test_pipeline__without_a_score_split_labels_and_reports(stages: Stages, tmp_path: Path) -> None:
    done = bring(stages, tmp_path, {"data.score_split": None})
    assert done == ["prepare train", "prepare val", "base", "seeds", "brnf", "label val", "report"]
    assert "brnf" not in json.loads((tmp_path / "metrics.json").read_text())


def test_pipeline__writes_configuration_hash_and_code_version_into_every_directory(
    stages: Stages, tmp_path: Path
) -> None:
    bring(stages, tmp_path)
    directories = [path.parent for path in tmp_path.rglob(DONE)]
    assert len(directories) == 7
    for directory in directories:
        record = json.loads((directory / CONFIG).read_text())
        assert {"config", "config_hash", "code_version", "key", "inputs"} <= set(record)
        assert record["key"] == json.loads((directory / DONE).read_text())["key"]
        assert record["config"]["backbone"]["name"] == load_recipe("demo").backbone.name


# --------------------------------------------------------------------------------------------- single commands


@pytest.fixture
def base(stages: Stages, tmp_path: Path) -> Stage:
    """The stage that trains a base on shards that are there."""
    stages._write("shards", str(tmp_path / "shards"), split="train")
    out = str(tmp_path / "base")
    return train_stage(load_recipe("demo"), method="sipe", shards=str(tmp_path / "shards"), out=out)


def test_run_stage__same_inputs_nothing_to_do(stages: Stages, base: Stage) -> None:
    assert run_stage(base).ran
    again = run_stage(base, begin=lambda: pytest.fail("Ray was started for nothing"))
    assert not again.ran
    assert again.manifest["sampled_features"] == 42


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inputs": {"shards": "0" * 16}}, r"made from other inputs \(shards\)"),
        ({"matters": {"random_seed": 1}}, "another configuration"),
        ({"version": 99}, "has changed since"),
        ({"name": "brnf"}, "output of stage 'base'"),
    ],
    ids=["inputs", "configuration", "version", "stage"],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_run_stage__other_inputs_are_refused_with_the_way_out(
    stages: Stages, base: Stage, change: dict[str, Any], reason: str, finished: bool
) -> None:
    run_stage(base)
    if not finished:
        (Path(base.out) / DONE).unlink()
    other = dataclasses.replace(base, **change)
    with pytest.raises(ValueError, match=rf"{reason}.*another directory.*--force"):
        run_stage(other)
    assert (Path(base.out) / "piece-0").exists()
    assert run_stage(other, force=True).ran
    assert not run_stage(other).ran


def test_run_stage__killed_while_deleting_can_be_repeated(
    stages: Stages, base: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(base)

    def dies(path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("brnf.stage.storage.delete", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stage(base, force=True)
    assert run_stage(base, force=True).ran


def test_stages__unfinished_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shards.*no stage of brnf has finished there"):
        train_stage(load_recipe("demo"), method="sipe", shards=str(tmp_path / "shards"), out=str(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"--seeds DIR"):
        train_stage(load_recipe("demo"), method="brnf", shards="shards", out="out")


def test_stages__single_command_finds_what_the_pipeline_made_up_to_date(stages: Stages, tmp_path: Path) -> None:
    bring(stages, tmp_path)
    run, shards, out = (str(tmp_path / name) for name in ("brnf", "shards/val", "labels/val"))
    stage = label_stage(load_recipe("demo"), run=run, shards=shards, out=out)
    assert not run_stage(stage).ran
