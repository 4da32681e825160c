"""Curves over the dial for co-occurrence: how much context is labelled as the class that it goes with, and mIoU."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from brnf.data import storage


def plot(path: str, points: Sequence[dict[str, Any]]) -> None:
    """Draw a line an arm, as PNG.

    Args:
        path: File to write.
        points: `dial`, `arm`, `context_share` (may be missing) and `miou`, from 0 to 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, (name, title) in zip(
        panels, (("context_share", "context labelled as its class, %"), ("miou", "mIoU, %")), strict=True
    ):
        for arm in dict.fromkeys(point["arm"] for point in points):
            line = [(point["dial"], 100 * point[name]) for point in points if point["arm"] == arm and name in point]
            panel.plot(*zip(*line, strict=True), marker="o", label=arm)
        panel.set_xlabel("share of objects on their own context (dial)")
        panel.set_title(title)
        panel.set_ylim(bottom=0)
    panels[0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    storage.write_bytes(path, picture.getvalue())
