"""Where a rank's rows come from. Tasks import this module, so it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from brnf.data.seeds import Seeds
from brnf.data.shards import Shards

COLUMNS = ("id", "image", "orientation", "image_labels")


@dataclass(frozen=True)
class Source:
    """What a rank reads: small, and sent to every task."""

    shards: Shards
    seeds: Seeds | None

    def read(self, rows: np.ndarray) -> pa.Table:
        """Read rows (R, 2) of (unit index, row in unit), in this order."""
        units, which = np.unique(rows[:, 0], return_inverse=True)
        tables, starts, total = [], [], 0
        for index in units:
            unit = self.shards.units[int(index)]
            table = self.shards.read_unit(unit, COLUMNS)
            if self.seeds is not None:
                table = self._join(table, self.seeds.read_unit(unit))
            tables.append(table)
            starts.append(total)
            total += table.num_rows
        return pa.concat_tables(tables).take(np.asarray(starts)[which] + rows[:, 1])

    def _join(self, images: pa.Table, seeds: pa.Table) -> pa.Table:
        assert images["id"].equals(seeds["id"]), "seeds passed Seeds.open, so rows agree"
        for name in ("keys", "shape", "scores"):
            images = images.append_column(name, seeds[name])
        return images


class ReadSteps:
    """Task: read the images of a run of steps."""

    def __init__(self, source: Source, plan: np.ndarray) -> None:
        self.source, self.plan = source, plan

    def read(self, steps: dict[str, np.ndarray]) -> pa.Table:
        """Rows of the steps from `first` to before `last`, in the plan's order."""
        spans = zip(steps["first"], steps["last"], strict=True)
        rows = np.concatenate([self.plan[first:last] for first, last in spans])
        return self.source.read(rows.reshape(-1, 2))
