"""Scores as text for the terminal, in percent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

MEANS = {"mIoU": "miou", "mean FP (over-activation)": "mean_fp", "mean FN (under-activation)": "mean_fn"}
INTERVAL = "where 95 % of paired bootstrap draws lie"


def class_table(scores: dict[str, Any]) -> list[str]:
    """IoU, FP and FN of every class, and their means."""
    rows = {name: [scores[key][name] for key in ("iou", "fp", "fn")] for name in scores["iou"]}
    rows["mean"] = [scores[key] for key in ("miou", "mean_fp", "mean_fn")]
    lines = [f"{name:16} {'  '.join(map(percent, values))}" for name, values in rows.items()]
    return [f"{'':16}   IoU     FP     FN", *lines]


def comparison(metrics: dict[str, Any]) -> list[str]:
    """Table of base against BRNF, in percent, and under it what their protocols differ in."""
    base, brnf = metrics["base"], metrics["brnf"]
    scores = [
        f"{title:28}{percent(base[key]):>8}{percent(brnf[key]):>8}{interval(metrics['gain'][key])}"
        for title, key in MEANS.items()
    ]
    shared, differing = [], []
    for name, value in brnf["protocol"].items():
        other = base["protocol"].get(name)
        if other == value:
            shared.append(f"{name} {value}")
        else:
            differing.append(f"{name}: base {other}; BRNF {value}")
    title = f"{'%':28}{'base':>8}{'BRNF':>8}{'gain':>8}  {INTERVAL}"
    return [f"{brnf['images']} images; {', '.join(shared)}", title, *scores, *differing]


def gain_table(gain: dict[str, Any], against: str) -> list[str]:
    """How much better labels are than others, with 95 % intervals."""
    lines = [f"{title:28}{interval(gain[key])}" for title, key in MEANS.items()]
    return [f"gain over {against} on {gain['images']} images; {INTERVAL}", *lines]


def ablation_table(found: dict[str, Any]) -> list[str]:
    """Arms with their scores, means over random seeds, and effects with intervals, all in percent."""
    lines = [
        f"scored on {found['reported_on']}, each run read in the best of its ways on {found['chosen_on']}",
        f"{'arm':12} {'read':26}{'mIoU':>14}{'FP':>7}{'FN':>7}{'context':>9}  {'way of the first random seed'}",
    ]
    for arm in found["arms"]:
        runs = [run["reported_on"] for run in arm["runs"]]
        miou = [run["miou"] for run in runs]
        spread = f" ±{100 * statistics.stdev(miou):4.1f}" if len(miou) > 1 else ""
        means = "".join(f"{percent(statistics.mean(run[key] for run in runs)):>7}" for key in ("mean_fp", "mean_fn"))
        context = [run["context_share"] for run in runs if "context_share" in run]
        shares = percent(statistics.mean(context)) if context else "-"
        scores = f"{percent(statistics.mean(miou)) + spread:>14}{means}{shares:>9}"
        lines.append(f"{arm['name']:12} {arm['read']:26}{scores}  {way(arm['runs'][0]['read_out'])}")
    lines += ["", f"{'effect; ' + INTERVAL:48}{'mIoU':>26}{'FP':>26}{'FN':>26}"]
    for title, effect in found["effects"].items():
        lines.append(f"{title:48}" + "".join(f"{interval(effect[key]):>26}" for key in MEANS.values()))
    return lines


def bias_table(points: Sequence[dict[str, Any]]) -> list[str]:
    """Context share and mIoU of each arm at each dial, in percent."""
    arms = list(dict.fromkeys(point["arm"] for point in points))
    lines = []
    for key, title in (("context_share", "context labelled as its class"), ("miou", "mIoU")):
        lines.append(f"{title + ', %':34}" + "".join(f"{arm:>10}" for arm in arms))
        for dial in dict.fromkeys(point["dial"] for point in points):
            scores = {point["arm"]: point.get(key) for point in points if point["dial"] == dial}
            lines.append(f"  dial {dial:<27g}" + "".join(f"{percent(scores.get(arm)):>10}" for arm in arms))
    return lines


def way(read_out: dict[str, Any]) -> str:
    """How a run was read, in a few words."""
    parts = [f"background factor {read_out['background_factor']}"] if read_out["maps"] != "posterior" else []
    if read_out["maps"] == "posterior" or (read_out["maps"] == "fusion" and read_out["fusion"][2] > 0):
        parts.append(f"prior odds {read_out['posterior_background']}")
    return ", ".join(parts)


def trial_table(trials: Sequence[dict[str, Any]]) -> list[str]:
    """Trials, best first: scores in percent, and the values that were tried."""
    lines = [f"{'trial':>5}{'epochs':>8}{'mIoU':>8}{'FP':>8}{'FN':>8}{'seconds':>9}  values"]
    for row in trials:
        scores = "".join(f"{percent(row[key]):>8}" for key in ("miou", "mean_fp", "mean_fn"))
        values = ", ".join(f"{name}={short(value)}" for name, value in row["values"].items())
        lines.append(f"{row['number']:>5}{row['epoch']:>8}{scores}{row['seconds']:>9.0f}  {values}")
    return lines


def interval(gain: dict[str, float | None]) -> str:
    """A difference of shares in percent, and between what it lies; a dash where there is none."""
    if gain["difference"] is None or gain["low"] is None or gain["high"] is None:
        return f"{'-':>8}"
    return f"{100 * gain['difference']:>+8.1f}  {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"


def short(value: Any) -> str:
    """A value in three digits, if it is a number with a fraction."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(share: float | None) -> str:
    """A share as percent; a dash where there is none."""
    return "    -" if share is None else f"{100 * share:5.1f}"
