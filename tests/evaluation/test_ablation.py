"""From counts to effects: how a way of reading is chosen, what is compared with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brnf.data.counts import Counts
from brnf.evaluation.ablation import Entry, Scored, best_way, describe, effect, plot

NAMES = ["background", "boat", "cow"]
WAYS = [{"maps": "prototype", "background_factor": factor} for factor in (0.5, 1.0, 2.0)]


def counts(rights: list[float], ids: str = "abcdef", context: int = 0) -> Counts:
    """Images of 100 pixels a class, of which each way of reading gets the given share right."""
    pixels = np.zeros((len(ids), len(rights), 5, len(NAMES)), np.int64)
    for way, right in enumerate(rights):
        hits = round(100 * right)
        pixels[:, way, :3] = np.array([hits, 100 - hits, 100 - hits])[:, None]
    pixels[:, :, 3, 1], pixels[:, :, 4, 1] = context, 10 * context
    manifest: dict[str, Any] = {"class_names": NAMES, "read_outs": WAYS, "protocols": WAYS}
    return Counts(tuple(ids), pixels, manifest)


def test_way_of_reading__is_chosen_on_one_split_for_each_run_and_reported_on_the_other() -> None:
    one = Scored(counts([0.5, 0.8, 0.7]), counts([0.9, 0.4, 0.9]))
    runs = [one, Scored(counts([0.9, 0.1, 0.2]), counts([0.3] * 3))]
    entry = best_way(runs, [0, 1, 2], None)
    assert entry.ways == (1, 0)
    rows = describe(entry, None)
    assert [row["read_out"]["background_factor"] for row in rows] == [1.0, 0.5]
    assert rows[0]["reported_on"]["miou"] == pytest.approx(0.4 / 1.6)
    assert rows[0]["chosen_on"]["miou"] == pytest.approx(0.8 / 1.2)
    assert best_way(runs, [0, 2], None).ways == (2, 0)  # only among those allowed


def test_context_share__is_told_where_context_is_known() -> None:
    known, unknown = (Scored(counts([0.5]), counts([0.5], context=context)) for context in (3, 0))
    assert describe(Entry((known,), (0,)), None)[0]["reported_on"]["context_share"] == pytest.approx(0.1)
    assert "context_share" not in describe(Entry((unknown,), (0,)), None)[0]["reported_on"]


def test_effect__is_that_of_the_images_and_random_seeds_that_both_have() -> None:
    better = Entry((Scored(counts([0.8]), counts([0.8], "bcdef")), Scored(counts([0.0]), counts([0.0]))), (0, 0))
    base = Entry((Scored(counts([0.6]), counts([0.6], "abcde")),), (0,))
    found = effect(better, base, None)
    assert (found["images"], found["random_seeds"]) == (4, 1)
    assert found["miou"]["difference"] == pytest.approx(0.8 / 1.2 - 0.6 / 1.4)
    assert found["mean_fp"]["difference"] == pytest.approx(0.2 / 1.2 - 0.4 / 1.4)


def test_plot__is_a_picture(tmp_path: Path) -> None:
    entry = Entry((Scored(counts([0.8]), counts([0.8])),), (0,))
    plot(str(tmp_path / "effects.png"), {"a - b": effect(entry, entry, None)})
    assert (tmp_path / "effects.png").read_bytes().startswith(b"\x89PNG")
