"""Ray Data executes the plan of an epoch: which images, in which order, reach which rank.

Tasks read the rows of a few steps from the units of a shard (and of its seeds) as encoded bytes; threads of the
training process decode and augment them; Ray restores the plan's order before the step. Each rank reads only its
own rows, so nothing depends on Ray's own splitting. A naive `read_parquet` costs seconds an epoch for its pool of
footer readers; here every task knows its row groups from the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data.collate_fn import ArrowBatchCollateFn

from brnf.config import RunConfig
from brnf.data.seeds import decode_seed
from brnf.data.transforms import augment, decode_image, row_rng
from brnf.distributed.source import ReadSteps, Source
from brnf.training.batch import Batch

READ_CPUS = 0.25

class DecodeAugment(ArrowBatchCollateFn):
    """Thread of the training process: encoded rows to a `Batch`.

    Args:
        config: Resolved configuration.
        num_classes: C.
        epoch: Key of the augmentation, beside the random seed and the image's id.
        stride: Pixels of the crop that a cell of its seed stands for.
    """

    def __init__(self, config: RunConfig, num_classes: int, epoch: int, stride: int) -> None:
        self.config, self.num_classes, self.epoch, self.stride = config, num_classes, epoch, stride
        red, green, blue = (round(255 * channel) for channel in config.backbone.mean)
        self.pad_color = (red, green, blue)

    def __call__(self, batch: pa.Table) -> Batch:
        rows = [self._row(row) for row in batch.to_pylist()]
        images, valid, allowed, keys, seeds = zip(*rows, strict=True)
        return Batch(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            valid=torch.from_numpy(np.stack(valid)),
            allowed=torch.from_numpy(np.stack(allowed)),
            keys=torch.tensor(keys),
            seed=None if seeds[0] is None else torch.from_numpy(np.stack(seeds)),
        )

    def _row(self, row: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray | None]:
        image = decode_image(row["image"], row["orientation"])
        keys, scores = decode_seed(row) if "scores" in row else (None, None)
        made = augment(
            image,
            scores,
            row_rng(self.config.random_seed, self.epoch, row["id"]),
            self.config.augment,
            stride=self.stride,
            pad_color=self.pad_color,
        )
        allowed = np.zeros(self.num_classes, dtype=bool)
        allowed[[0, *row["image_labels"]]] = True
        dense = None
        if made.seed is not None:
            dense = np.zeros((self.num_classes, *made.valid.shape), dtype=np.float32)
            dense[keys] = made.seed
            dense *= allowed[:, None, None] & made.valid
        return made.image, made.valid, allowed, draw_key(self.config.random_seed, self.epoch, row["id"]), dense


def draw_key(random_seed: int, epoch: int, id: str) -> int:
    """63 bits for the pixel draws of an image in an epoch."""
    digest = hashlib.sha256(f"pixels {random_seed} {epoch} {id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(
    source: Source,
    plan: np.ndarray,
    *,
    config: RunConfig,
    stride: int,
    epoch: int,
    first_step: int,
    steps_per_read: int,
) -> Iterator[Batch]:
    """Iterate over a rank's batches of an epoch, from `first_step` on.

    Args:
        source: Shards and seeds.
        plan: (steps, batch of this rank, 2) from `rank_slice`.
        config: Resolved configuration.
        stride: Pixels of the crop that a cell of its seed stands for.
        epoch: Which epoch.
        first_step: Steps of this epoch that are done.
        steps_per_read: Steps whose images one task reads.

    Yields:
        One batch a step, on the CPU.
    """
    spans = [
        {"first": first, "last": min(first + steps_per_read, len(plan))}
        for first in range(first_step, len(plan), steps_per_read)
    ]
    if not spans:
        return
    dataset = ray.data.from_items(spans, override_num_blocks=len(spans))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    rows = dataset.map_batches(
        ReadSteps(source, plan).read,  # pyright: ignore[reportArgumentType]  (Ray wants batches in the form they came)
        batch_size=1,
        num_cpus=READ_CPUS,
        zero_copy_batch=True,
    )
    batches = rows.iterator().iter_torch_batches(
        batch_size=plan.shape[1],
        prefetch_batches=config.compute.prefetch_batches,
        collate_fn=DecodeAugment(config, source.shards.num_classes, epoch, stride),
    )
    yield from cast(Iterable[Batch], batches)  # what DecodeAugment made; Ray's type knows dictionaries only


def steps_per_read(unit_rows: Sequence[int], window_units: int, batch_size: int) -> int:
    """Steps that use up about one window of the plan: a task then reads each of its units once."""
    return max(1, round(window_units * max(unit_rows) / batch_size))
