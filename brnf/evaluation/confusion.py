"""Confusion of true and labelled pixels, and the scores of the field that follow from it.

One confusion over all pixels of a split, then the ratios: never a mean over images. With TP, FP and FN of a class
and U = TP + FP + FN, IoU = TP/U, over-activation FP/U, under-activation FN/U, so that the three sum to one.

Source: the ratios are those that IRN, ReCAM, SIPE and SFC print (eval_sem_seg.py, jiwoon-ahn/irn).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brnf.data.schema import BACKGROUND, IGNORE_INDEX


def count_pixels(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each pair of true and predicted class; those whose truth is 255 are left out.

    Args:
        truth: uint8 (H, W), class indices and 255.
        predicted: uint8 (H, W), class indices.
        num_classes: C, background included.

    Returns:
        int64 (C, C), rows are the truth. Sums over images are the confusion of a split.

    Raises:
        ValueError: If the sizes differ or a value is no class.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"the label is {_size(predicted)} pixels and the mask {_size(truth)}; label this image again")
    if predicted.max(initial=0) >= num_classes:
        raise ValueError(f"the label holds class {predicted.max()}, but classes end at {num_classes - 1}")
    # Counting all 256 values of the truth and cutting afterwards is faster than masking out the ignored pixels.
    pairs = truth.astype(np.int32).ravel() * num_classes + predicted.ravel()
    counts = np.bincount(pairs, minlength=256 * num_classes).reshape(256, num_classes)
    stray = np.flatnonzero(counts[num_classes:IGNORE_INDEX].any(axis=1))
    if stray.size:
        raise ValueError(f"the mask holds class {num_classes + stray[0]}, but classes end at {num_classes - 1}")
    return counts[:num_classes].astype(np.int64)


def metrics(
    confusion: np.ndarray, class_names: Sequence[str], classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores of a confusion: mIoU, over-activation (FP) and under-activation (FN), over all and by class.

    Args:
        confusion: int64 (C, C), rows are the truth.
        class_names: C names, background first.
        classes: Foreground classes to average over; none or empty means all. Background always counts for `miou`
            and never for `mean_fp` and `mean_fn`.

    Returns:
        `miou`, `mean_fp`, `mean_fn` and, by class name, `iou`, `fp`, `fn`; from 0 to 1. A class in neither truth nor
        labels is None and left out of the means.

    Raises:
        ValueError: If `classes` holds a name that is no class.
    """
    hits = np.diagonal(confusion)
    false, missed = confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits
    iou, fp, fn = (_ratios(part, hits + false + missed, class_names) for part in (hits, false, missed))
    averaged = averaged_classes(class_names, classes)
    return {
        "miou": _mean([iou[class_names[BACKGROUND]], *(iou[name] for name in averaged)]),
        "mean_fp": _mean([fp[name] for name in averaged]),
        "mean_fn": _mean([fn[name] for name in averaged]),
        "iou": iou,
        "fp": fp,
        "fn": fn,
    }


def averaged_classes(class_names: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The foreground classes that means are taken over, in the order of the classes.

    Raises:
        ValueError: If `classes` holds a name that is no class.
    """
    unknown = [name for name in classes or () if name not in class_names]
    if unknown:
        raise ValueError(f"--classes names {', '.join(unknown)}; the classes are {', '.join(class_names)}")
    foreground = [name for index, name in enumerate(class_names) if index != BACKGROUND]
    return [name for name in foreground if not classes or name in classes]


def _ratios(parts: np.ndarray, wholes: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    """By class, the part of the whole; None where there is nothing."""
    return {
        name: float(part / whole) if whole else None for name, part, whole in zip(names, parts, wholes, strict=True)
    }


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
