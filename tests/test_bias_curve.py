"""Bookkeeping of the bias curve: an ablation a dial, once, and points for what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import Stages

from brnf.bias_curve import BiasCurve
from brnf.config import load_recipe
from brnf.tables import bias_table


def test_bias_curve__runs_each_dial_once_and_draws_four_arms(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[float] = []
    monkeypatch.setattr("brnf.data.scenes.render_sample", lambda out, *, bias, random_seed: rendered.append(bias))

    def curve(*dials: float) -> list[str]:
        stages.calls.clear()
        BiasCurve(config=load_recipe("demo"), out=str(tmp_path), dials=dials).run()
        return list(stages.calls)

    done = curve(0.5)
    assert {"base", "guidance", "oracle", "brnf", "true seeds"} <= set(done) and "calibration" not in done
    assert curve(0.5, 0.9) == done and rendered == [0.5, 0.5, 0.9]
    points = json.loads((tmp_path / "bias.json").read_text())["points"]
    assert [(point["dial"], point["arm"]) for point in points] == [
        (dial, arm) for dial in (0.5, 0.9) for arm in ("base", "guidance", "oracle", "full")
    ]
    assert all(0 < point["context_share"] <= 8 for point in points)
    assert (tmp_path / "bias.png").exists()
    lines = bias_table(points)
    assert len(lines) == 6 and lines[0].split()[-4:] == ["base", "guidance", "oracle", "full"]
