"""Scores of a label directory against the masks of shards: read unit by unit, joined by image id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brnf.data.labels import Labels
from brnf.data.shards import Shards, Unit
from brnf.data.transforms import decode_mask
from brnf.evaluation.bias import context_share, count_context
from brnf.evaluation.bootstrap import outcomes, paired_differences
from brnf.evaluation.confusion import averaged_classes, count_pixels, metrics

NAMED = 5
"""Ids that a message names; the rest are counted."""


def evaluate(labels: str, shards: str, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Score labels against the masks of a split.

    Every image of the shards that has a mask is scored; labels of further images are not looked at, so that labels
    of train_aug can be scored on train.

    Args:
        labels: Directory that `brnf label` completed.
        shards: Directory that `brnf prepare` completed, with masks.
        classes: Foreground classes that the means are taken over; none or empty means all.

    Returns:
        The scores of `metrics`; `images` (scored), `missing` (quarantined when labelling) and `unmasked` (without a
        mask in the shards); `protocol`; and, where the shards hold context maps, `context_share`.

    Raises:
        ValueError: If a name in `classes` is unknown, the shards hold no masks, the labels are of other shards, or an
            image has no label or one of another size.
    """
    truth, made = Shards.open(shards), Labels.open(labels)
    averaged = averaged_classes(truth.class_names, classes)
    tally = count(made, truth)
    scores = metrics(tally.confusion, truth.class_names, classes)
    if tally.context.any():
        scores["context_share"] = context_share(tally.context, truth.class_names)
    counts = {"images": len(tally.outcomes), "missing": tally.missing, "unmasked": tally.unmasked}
    return {**scores, **counts, "protocol": _protocol(made, truth, averaged)}


def compare(labels: str, against: str, shards: str, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """How much better labels score than others of the same images, with 95 % intervals.

    Args:
        labels: As in `evaluate`.
        against: Other labels of the same shards, such as those of the base.
        shards: As in `evaluate`.
        classes: As in `evaluate`.

    Returns:
        What `paired_differences` does, over the `images` that both have labelled.

    Raises:
        ValueError: As `evaluate`; or if no image is labelled in both.
    """
    truth = Shards.open(shards)
    averaged = [truth.class_names.index(name) for name in averaged_classes(truth.class_names, classes)]
    first, second = (count(Labels.open(path), truth).outcomes for path in (labels, against))
    both = sorted(first.keys() & second.keys())
    if not both:
        raise ValueError(f"{labels} and {against} have labelled no image in common; label the same shards for both")
    ours, theirs = (np.stack([counts[id] for id in both])[None] for counts in (first, second))
    return {**paired_differences(ours, theirs, averaged), "images": len(both)}


def count(labels: Labels, shards: Shards) -> Tally:
    """Count the pixels of all images that are labelled and have a mask.

    Raises:
        ValueError: As in `evaluate`.
    """
    check_origin(labels, shards)
    tally = _total(labels, shards)
    _check(tally, labels, shards)
    return tally


def check_origin(labels: Labels, shards: Shards) -> None:
    """Refuse labels that speak of other classes, or of another state of the same split.

    Raises:
        ValueError: If so.
    """
    names = tuple(labels.manifest.get("class_names", shards.class_names))
    if names != tuple(shards.class_names):
        raise ValueError(
            f"{labels.path} is labelled with the classes {', '.join(names)}, but {shards.path} has "
            f"{', '.join(shards.class_names)}; give the labels and shards of one data set"
        )
    same_split = labels.manifest.get("protocol", {}).get("split") == shards.manifest.get("split")
    if same_split and labels.manifest.get("shards_hash") != shards.content_hash:
        raise ValueError(
            f"{labels.path} was made from another state of this split than {shards.path} (content hash "
            f"{labels.manifest.get('shards_hash')}, not {shards.content_hash}); label these shards again"
        )


@dataclass
class Tally:
    """What was counted in a unit, or in all of them."""

    confusion: np.ndarray  # int64 (C, C), rows are the truth
    context: np.ndarray  # int64 (2, C), see count_context
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)  # int64 (3, C) by id, of every image scored
    missing: int = 0
    unmasked: int = 0
    unlabelled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # "id: what is wrong with its label or mask"

    def add(self, other: Tally) -> None:
        """Add the counts of another unit."""
        self.confusion += other.confusion
        self.context += other.context
        self.outcomes |= other.outcomes
        self.missing += other.missing
        self.unmasked += other.unmasked
        self.unlabelled += other.unlabelled
        self.broken += other.broken


def _total(labels: Labels, shards: Shards) -> Tally:
    """Count all units, decoding in threads; sums of integers, so the order of threads does not matter."""
    total = _empty(shards.num_classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tally in pool.map(lambda unit: _count_unit(unit, labels, shards), shards.units):
            total.add(tally)
    return total


def _empty(num_classes: int) -> Tally:
    return Tally(np.zeros((num_classes, num_classes), np.int64), np.zeros((2, num_classes), np.int64))


def _count_unit(unit: Unit, labels: Labels, shards: Shards) -> Tally:
    """Count the images of one unit."""
    tally = _empty(shards.num_classes)
    rows = shards.read_unit(unit, ["id", "mask", "context", "image_labels", "orientation"]).to_pylist()
    masks = labels.masks(row["id"] for row in rows)
    for row in rows:
        if row["mask"] is None:
            tally.unmasked += 1
        elif row["id"] in labels.quarantined:
            tally.missing += 1
        elif row["id"] not in masks:
            tally.unlabelled.append(row["id"])
        else:
            _count_image(tally, row, masks[row["id"]], shards.num_classes)
    return tally


def _count_image(tally: Tally, row: dict[str, Any], label: bytes, num_classes: int) -> None:
    """Add one image to the tally; what is wrong with it is named there and raised once all are counted."""
    try:
        truth, predicted = decode_mask(row["mask"], row["orientation"]), decode_mask(label)
        confusion = count_pixels(truth, predicted, num_classes)
    except ValueError as error:
        tally.broken.append(f"{row['id']}: {error}")
        return
    tally.confusion += confusion
    tally.outcomes[row["id"]] = outcomes(confusion)
    if row["context"] is not None:
        context = decode_mask(row["context"], row["orientation"])
        tally.context += count_context(context, truth, predicted, row["image_labels"], num_classes)


def _check(tally: Tally, labels: Labels, shards: Shards) -> None:
    """Raise what a score must not hide."""
    if tally.unlabelled:
        raise ValueError(
            f"{len(tally.unlabelled)} of {shards.num_images} images in {shards.path} have no label in {labels.path}: "
            f"{_some(tally.unlabelled)}; label these shards, or give the shards that were labelled"
        )
    if tally.broken:
        listed = _some(tally.broken, "\n  ")
        raise ValueError(f"{len(tally.broken)} of {shards.num_images} images cannot be scored:\n  {listed}")
    if tally.unmasked == shards.num_images:
        raise ValueError(
            f"{shards.path} holds no masks, so labels cannot be scored on it; prepare a split that has masks, or "
            "score none (data.score_split null)"
        )


def _some(names: list[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return separator.join([*names[:NAMED], *more])


def _protocol(labels: Labels, shards: Shards, averaged: list[str]) -> dict[str, Any]:
    """What the scores were measured with: the labels' own protocol, and on what they were scored."""
    made = dict(labels.manifest.get("protocol", {}))
    labelled = made.pop("split", None)
    scored = {"split": shards.manifest["split"], "labelled_split": labelled, "truth": shards.manifest.get("masks")}
    return {**scored, "classes_averaged": averaged, **made}
