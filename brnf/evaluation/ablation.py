"""From counts of pixels to the table of an ablation.

For each run, one way of reading is chosen by mIoU on one split and reported on another, so that a run does not profit
from having been looked at more often. Effects are differences between runs on the same images, with intervals from a
paired bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brnf.data import storage
from brnf.data.counts import Counts
from brnf.evaluation.bias import context_share
from brnf.evaluation.bootstrap import SCORES, mean_scores, paired_differences
from brnf.evaluation.confusion import averaged_classes


@dataclass(frozen=True)
class Scored:
    """A trained run, read in the same ways on two splits."""

    chosen_on: Counts
    """Of the split that the way of reading is chosen on."""
    reported_on: Counts
    """Of the split whose scores count."""


@dataclass(frozen=True)
class Entry:
    """An arm, in the best of some ways of reading; one run a random seed."""

    runs: tuple[Scored, ...]
    ways: tuple[int, ...]
    """The way chosen for each run."""

    def outcomes(self, ids: Sequence[str]) -> np.ndarray:
        """int64 (R, N, 3, C) of images reported on."""
        found = []
        for run, way in zip(self.runs, self.ways, strict=True):
            place = {id: index for index, id in enumerate(run.reported_on.ids)}
            found.append(run.reported_on.pixels[[place[id] for id in ids], way, : len(SCORES)])
        return np.stack(found)


def best_way(runs: Sequence[Scored], among: Sequence[int], classes: Sequence[str] | None) -> Entry:
    """Choose, for each run by itself, the way of reading with the highest mIoU.

    Args:
        runs: Of one arm.
        among: Indices of the ways allowed.
        classes: Foreground classes that means are taken over; none means all.
    """
    chosen = []
    averaged = averaged_indices(runs[0].chosen_on.manifest["class_names"], classes)
    for run in runs:
        totals_W3C = run.chosen_on.pixels[:, list(among), : len(SCORES)].sum(axis=0)
        chosen.append(among[int(np.nanargmax(mean_scores(totals_W3C, averaged)[:, 0]))])
    return Entry(tuple(runs), tuple(chosen))


def describe(entry: Entry, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """For each run: the way chosen, and its scores on both splits."""
    rows = []
    for run, way in zip(entry.runs, entry.ways, strict=True):
        rows.append(
            {
                "read_out": run.reported_on.manifest["read_outs"][way],
                "protocol": run.reported_on.manifest["protocols"][way],
                "chosen_on": scores(run.chosen_on, way, classes),
                "reported_on": scores(run.reported_on, way, classes),
            }
        )
    return rows


def scores(counts: Counts, way: int, classes: Sequence[str] | None) -> dict[str, Any]:
    """`miou`, `mean_fp`, `mean_fn`, `images`, and `context_share` where context is known; from 0 to 1."""
    names = counts.manifest["class_names"]
    total = counts.pixels[:, way].sum(axis=0)
    found = mean_scores(total[None, : len(SCORES)], averaged_indices(names, classes))[0]
    result: dict[str, Any] = {name: float(value) for name, value in zip(SCORES, found, strict=True)}
    if total[len(SCORES) :].any():
        result["context_share"] = context_share(total[len(SCORES) :], names)["mean"]
    return result | {"images": len(counts.ids)}


def effect(first: Entry, second: Entry, classes: Sequence[str] | None) -> dict[str, Any]:
    """How much the first scores above the second on the images that both could be scored on.

    Only as many random seeds are compared as both have, so that a lucky base cannot stand against three others.
    """
    count = min(len(first.runs), len(second.runs))
    first, second = (Entry(entry.runs[:count], entry.ways[:count]) for entry in (first, second))
    shared = set.intersection(*(set(run.reported_on.ids) for run in (*first.runs, *second.runs)))
    ids, names = sorted(shared), first.runs[0].reported_on.manifest["class_names"]
    averaged = averaged_indices(names, classes)
    found = paired_differences(first.outcomes(ids), second.outcomes(ids), averaged)
    return {**found, "images": len(ids), "random_seeds": count}


def averaged_indices(names: Sequence[str], classes: Sequence[str] | None) -> list[int]:
    """Indices of the foreground classes that means are taken over."""
    return [names.index(name) for name in averaged_classes(names, classes)]


def plot(path: str, effects: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw every effect with its interval, one panel a score, as PNG.

    Args:
        path: File to write.
        effects: By title, what `effect` returned.
    """
    import io

    from matplotlib.figure import Figure

    titles = {"miou": "mIoU", "mean_fp": "mean FP", "mean_fn": "mean FN"}
    figure = Figure(figsize=(11, 1.2 + 0.4 * len(effects)), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharey=True)
    for panel, name in zip(panels, SCORES, strict=True):
        rows = [(row, found[name]) for row, found in enumerate(effects.values()) if found[name]["low"] is not None]
        centre = [100 * found["difference"] for _, found in rows]
        reach = [[100 * abs(found["difference"] - found[end]) for _, found in rows] for end in ("low", "high")]
        panel.axvline(0, color="0.7", linewidth=1)
        panel.errorbar(centre, [row for row, _ in rows], xerr=reach, fmt="o", color="C0", capsize=3)
        panel.set_title(f"{titles[name]}, points")
        panel.set_yticks(range(len(effects)), list(effects))
    panels[0].invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    storage.write_bytes(path, picture.getvalue())
