"""metrics.jsonl: means over windows, and a resumed run's rows follow those of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from brnf.training.metrics_log import MetricsLog, overlay

CLASSES = ("background", "cat", "dog")


def rows_of(log: MetricsLog) -> list[dict]:
    return [json.loads(line) for line in log.jsonl().decode().splitlines()]


def test_windows__are_means_of_the_steps_that_measured(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [], CLASSES)
    log.add({"loss": torch.tensor(1.0)}, 16)
    log.add({"loss": torch.tensor(3.0), "late": torch.tensor(8.0)}, 16)
    log.close_window(2, 0)
    log.add({"loss": torch.tensor(5.0)}, 16)
    log.close_window(3, 1)
    rows = rows_of(log)
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [(2, 0, 2.0), (3, 1, 5.0)]
    assert rows[0]["late"] == 8.0 and "late" not in rows[1]
    log.close()
    resumed = MetricsLog(tmp_path, rows[:1], CLASSES)
    resumed.add({"loss": torch.tensor(5.0)}, 16)
    resumed.close_window(3, 1)
    assert [row["step"] for row in rows_of(resumed)] == [2, 3]


def test_measures_of_classes__are_means_over_the_steps_that_had_the_class(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, [], CLASSES)
    log.add({"share": torch.tensor([0.5, float("nan"), float("nan")])}, 16)
    log.add({"share": torch.tensor([0.25, 0.75, float("nan")])}, 16)
    row = log.close_window(2, 0)
    assert (row["share_background"], row["share_cat"], "share_dog" in row) == (0.375, 0.75, False)
    log.close()


def test_overlay__tints_where_a_foreground_map_is_high() -> None:
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 0] = 1.0  # the background does not count
    maps[0, 2, :, 1] = 1.0
    image = torch.zeros(1, 3, 8, 8)
    tinted = overlay(image, maps)
    assert tinted[0, 0, 0, 7] > 0.5 and tinted[0, :, 0, 0].sum() == 0
