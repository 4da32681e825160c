"""What a read-out is: which run reads which shards in which ways, and what becomes of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from brnf.config import ComputeConfig, ReadOutConfig
from brnf.data.shards import Shards
from brnf.inference.multiscale import Scores

COLUMNS = ("id", "image", "width", "height", "orientation", "image_labels")
"""What reading an image takes. Masks are not among them."""


class Writer(Protocol):
    """What becomes of an image's scores. Picklable: actors get a copy."""

    @property
    def folder(self) -> str:
        """Directory of the unit files."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Of the unit files; `id` and `error` are among its fields."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the shards that rows come with."""
        ...

    def size(self, row: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the scores wanted for an image."""
        ...

    def accept(self, row: dict[str, Any], readings: Sequence[Scores]) -> dict[str, Any]:
        """Make the row of an image that was read, in as many ways as the job says; a ValueError refuses it."""
        ...

    def refuse(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """Make the row of one that cannot be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadOutJob:
    """Everything an actor needs."""

    run: str
    shards: Shards
    configs: tuple[ReadOutConfig, ...]
    """Ways of reading; labels and seeds have one. They differ in neither scales nor flip."""
    compute: ComputeConfig
    writer: Writer

    @property
    def refined_apart(self) -> bool:
        """Whether refining may be left to other actors: it takes CPUs, and there is one way of reading to send them."""
        return len(self.configs) == 1 and not set(self.configs[0].refiners) <= {"par"}
