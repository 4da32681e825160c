"""The command: help, refusals, precedence of flags over recipes, and what goes to which stream."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brnf.cli import main, parse_verb
from brnf.config import load_recipe
from brnf.data import storage
from brnf.pipeline import Pipeline
from brnf.stage import Outcome, Stage, run_stage
from brnf.verbs import VERBS, Demo, Label, Train


def test_help__lists_every_verb_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for name, verb in VERBS.items():
        line = next(line for line in printed.splitlines() if line.split("  ")[1:2] == [name])
        assert (verb.__doc__ or "").splitlines()[0] in line


@pytest.mark.parametrize("name", VERBS)
def test_help__of_every_verb_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert (VERBS[name].__doc__ or "").splitlines()[0][:40] in printed.replace("\n", " ")
    assert "--json" in printed


def test_help__is_quick_because_it_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom brnf.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--brnf.f1.depth" in done.stdout


def test_help__says_nothing_when_its_reader_has_seen_enough() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "brnf", "label", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        command.stdout.close()
        assert command.stderr is not None
        assert command.stderr.read() == ""
    assert command.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["flow"], ["usage: brnf", "pipeline"]),
        (["prepare", "zip"], ["prepare voc", "prepare folder"]),
        (["train", "--config", "nothing"], ["'nothing'", "voc_resnet50"]),
        (["train", "--config", "demo", "--method", "sipe", "--out", "o"], ["--shards"]),
        (["train", "--config", "demo", "--method", "sipe", "--shards", "none", "--out", "o"], ["manifest.json"]),
        (["train", "--config", "demo", "--method", "brnf", "--shards", "none", "--out", "o"], ["--seeds DIR"]),
        (["pipeline", "--config", "demo", "--root", "r", "--out", "o", "--brnf.f1.dept", "4"], ["--brnf.f1.depth"]),
        (["pipeline", "--config", "demo", "--root", "r", "--out", "o", "--brnf.f1.depth", "0"], ["depth", "1 or more"]),
        (["pipeline", "--config", "demo", "--root", "r", "--out", "o", "--seeds.maps", "fusion"], ["no flow"]),
        (["pipeline", "--config", "demo", "--root", "nowhere", "--out", "o"], ["nowhere", "JPEGImages"]),
        (["pipeline", "--config", "coco_resnet50", "--root", "r", "--out", "o"], ["train2014", "r has neither"]),
        (["label", "--run", "nowhere", "--shards", "s", "--out", "o"], ["nowhere", "brnf train"]),
        (["irn", "--seeds", "nowhere", "--shards", "s", "--out", "o"], ["--seeds nowhere", "brnf seeds"]),
        (["irn", "--config", "demo", "--seeds", "none", "--shards", "none", "--out", "o"], ["manifest.json"]),
        (["irn", "--seeds", "n", "--config", "demo", "--shards", "n", "--out", "o", "--irn.optim.batch-size", "3",
          "--compute.num-workers", "2"], ["irn.optim.batch_size is 3", "workers (2)"]),
        (["irn", "--seeds", "n", "--config", "demo", "--shards", "n", "--out", "o", "--irn.optim.lr-backbone", "0.1"],
         ["lr_backbone", "give 0"]),
        (["evaluate", "--labels", "nowhere", "--shards", "none"], ["none"]),
        (["export", "--labels", "nowhere", "--format", "coco", "--out", "o"], ["nowhere", "manifest.json"]),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_main__refuses_with_code_2_and_one_message_without_traceback(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err
    for part in parts:
        assert part in printed.err
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def test_main__debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["label", "--run", "nowhere", "--shards", "s", "--out", "o", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_train__flags_win_over_the_recipe_and_keep_the_rest_of_it() -> None:
    flags = ["--config=demo", "--method", "brnf", "--shards", "s", "--seeds", "DIR", "--out", "o"]
    verb = parse_verb("train", [*flags, "--brnf.f1.depth", "6", "--seeds.scales", "1.0", "2.0", "--random-seed", "3"])
    assert isinstance(verb, Train)
    expected = {"brnf.f1.depth": 6, "seeds.scales": [1.0, 2.0], "random_seed": 3}
    assert verb.settings == load_recipe("demo", expected)
    assert verb.seeds == "DIR"


def test_demo__is_the_demo_recipe_with_overrides() -> None:
    verb = parse_verb("demo", ["--out", "o", "--data.score-classes", "boat", "train"])
    assert isinstance(verb, Demo)
    assert verb.settings == load_recipe("demo", {"data.score_classes": ["boat", "train"]})


def test_label__takes_the_runs_own_configuration_and_overrides_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_recipe("demo", {"label.flip": False, "label.long_side": 96})
    stage = Stage(name="brnf", version=1, out=str(run), matters={}, config=config, inputs={}, work=dict)
    run_stage(stage)
    verb = parse_verb("label", ["--run", str(run), "--shards", "s", "--out", "o", "--label.maps", "classifier"])
    assert isinstance(verb, Label)
    assert (verb.label.flip, verb.label.long_side, verb.label.maps) == (False, 96, "classifier")


def scored(miou: float) -> dict[str, Any]:
    """Scores as `evaluate` gives them."""
    by_class = {"background": 0.9, "boat": miou}
    means = {"miou": miou, "mean_fp": 0.2, "mean_fn": None}
    classes = {"iou": by_class, "fp": by_class, "fn": {"background": 0.0, "boat": None}}
    return {**means, **classes, "images": 60, "protocol": {"split": "val", "flip": True}}


def test_evaluate__json_is_one_line_on_stdout_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def evaluate(labels: str, shards: str, classes: Any) -> dict[str, Any]:
        print("chatter of a library")
        asked.append(classes)
        return scored(0.5)

    storage.write_json(str(tmp_path / "manifest.json"), {"quarantine": [{"id": "a"}]})
    monkeypatch.setattr("brnf.evaluation.evaluate.evaluate", evaluate)
    main(["evaluate", "--labels", str(tmp_path), "--shards", "s", "--classes", "cat, dog", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == scored(0.5)
    assert printed.out.count("\n") == 1
    assert "chatter" in printed.err
    assert asked == [("cat", "dog")]
    assert f"refused 1 of its inputs; reasons in {tmp_path}/manifest.json" in printed.err


def test_evaluate__table_shows_every_class_and_a_dash_for_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage.write_json(str(tmp_path / "manifest.json"), {})
    monkeypatch.setattr("brnf.evaluation.evaluate.evaluate", lambda *_: scored(0.5))
    main(["evaluate", "--labels", str(tmp_path), "--shards", "s"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("boat")] == [["boat", "50.0", "50.0", "-"]]
    assert lines[-1] == "refused inputs: 0"


def test_pipeline__prints_base_against_brnf_the_report_and_last_what_was_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(self: Pipeline) -> dict[str, Any]:
        manifest = {"quarantine": [{"id": "a"}, {"id": "b"}], "warnings": ["temperature is odd"]}
        self.outcomes.append(Outcome(stage="prepare", out=f"{tmp_path}/shards/val", manifest=manifest, ran=True))
        gain = {key: {"difference": 0.125, "low": 0.1, "high": 0.15} for key in ("miou", "mean_fp", "mean_fn")}
        return {"base": scored(0.5), "brnf": scored(0.625), "gain": gain}

    monkeypatch.setattr(Pipeline, "run", run)
    main(["pipeline", "--config", "demo", "--root", "r", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert ["mIoU", "50.0", "62.5", "+12.5", "+10.0", "to", "+15.0"] in [line.split() for line in lines]
    assert f"report: {tmp_path}/report.html" in lines
    assert lines[-2] == f"warning: {tmp_path}/shards/val: temperature is odd"
    assert lines[-1] == f"prepare refused 2 of its inputs; reasons in {tmp_path}/shards/val/manifest.json"
