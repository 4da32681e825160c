"""The record of a run: rows of metrics.jsonl, the same as TensorBoard scalars, and overlays of maps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

WEIGHT = 0.6
"""Opacity of a map's colour where the map is 1."""


class MetricsLog:
    """Means over windows of steps. One row a window; rows are part of the checkpoint.

    Args:
        directory: Local directory for TensorBoard's event files; they go on after a resume.
        rows: Rows until the checkpoint that training goes on from.
        class_names: Name the entries of measures that have one a class; the background is first.
    """

    def __init__(self, directory: Path, rows: list[dict[str, Any]], class_names: Sequence[str]) -> None:
        self.rows, self.class_names = rows, class_names
        purge = int(rows[-1]["step"]) + 1 if rows else 0
        self.writer = SummaryWriter(str(directory), purge_step=purge)
        self._restart()

    def _restart(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._images, self._started = 0, time.monotonic()

    def add(self, metrics: dict[str, Tensor], num_images: int) -> None:
        """Take in one step. Measures are scalars, or (C,) with not-a-number for classes that had nothing to measure."""
        for name, value in metrics.items():
            measured = ~value.isnan() if value.ndim else torch.ones_like(value, dtype=torch.bool)
            self._totals[name] = self._totals.get(name, 0) + value.where(measured, 0)
            self._counts[name] = self._counts.get(name, 0) + measured.float()
        self._images += num_images

    def close_window(self, step: int, epoch: int) -> dict[str, Any]:
        """End the window after `step` steps: one row, to file and TensorBoard."""
        means = dict(sorted(self._means()))
        speed = self._images / max(time.monotonic() - self._started, 1e-9)
        row = {"step": step, "epoch": epoch, **means, "images_per_second": round(speed, 2)}
        for name, value in list(row.items())[2:]:
            self.writer.add_scalar(name, value, step)
        self.rows.append(row)
        self._restart()
        return row

    def _means(self) -> Iterator[tuple[str, float]]:
        """Means of the open window; `depressed_share_of` becomes `depressed_share_of_cat` and so on."""
        for name, total in self._totals.items():
            mean = total / self._counts[name]
            if mean.ndim == 0:
                yield name, float(mean)
                continue
            for class_name, value in zip(self.class_names, mean.tolist(), strict=True):
                if not math.isnan(value):
                    yield f"{name}_{class_name}", value

    def overlays(self, images: Tensor, panels: Mapping[str, Tensor], step: int, count: int = 4) -> None:
        """Show the first images (N, 3, H, W), uint8, beside the same tinted by each stack of maps (N, C, h, w)."""
        images = images[:count].float() / 255
        shown = [images, *(overlay(images, maps[:count]) for maps in panels.values())]
        grid = make_grid(torch.stack(shown, dim=1).flatten(0, 1), nrow=len(shown))
        self.writer.add_image(", ".join(["image", *panels]), grid, step)

    def jsonl(self) -> bytes:
        """All rows as the content of metrics.jsonl."""
        return "".join(json.dumps(row) + "\n" for row in self.rows).encode()

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        self.writer.close()


def overlay(images: Tensor, maps: Tensor) -> Tensor:
    """Tint images (N, 3, H, W) in [0, 1] red by the strongest foreground map of (N, C, h, w)."""
    strongest = maps[:, 1:].detach().amax(dim=1, keepdim=True).float()
    alpha = WEIGHT * torch.nn.functional.interpolate(strongest, size=images.shape[-2:], mode="bilinear").clamp(0, 1)
    red = images.new_tensor([1.0, 0.1, 0.1]).view(1, 3, 1, 1)
    return images * (1 - alpha) + red * alpha
