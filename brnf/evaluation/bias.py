"""How much of a class's context the labels take for the class: water for a boat, rails for a train.

Needs to know which ground goes with which class, as the sample does. The share rises with co-occurrence bias
and is blind to the class's own outline, so it isolates what BRNF is about from over-activation at large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brnf.data.schema import BACKGROUND


def count_context(
    context: np.ndarray, truth: np.ndarray, predicted: np.ndarray, image_labels: Sequence[int], num_classes: int
) -> np.ndarray:
    """Count an image's context pixels by the class they go with, for the classes that the image is tagged with.

    Args:
        context: uint8 (H, W), class that the ground goes with, 0 where it goes with none.
        truth: uint8 (H, W); only pixels that are background here are context.
        predicted: uint8 (H, W), class indices.
        image_labels: Foreground classes in the image.
        num_classes: C, background included.

    Returns:
        int64 (2, C): context pixels that were labelled with their class, and all of them.
    """
    grounds = context[truth == BACKGROUND]
    taken = grounds[predicted[truth == BACKGROUND] == grounds]
    counts = np.stack([np.bincount(part, minlength=256)[:num_classes] for part in (taken, grounds)])
    tagged = np.zeros(num_classes, dtype=np.int64)
    tagged[list(image_labels)] = 1
    return counts * tagged


def context_share(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Shares of context that was labelled with the class it goes with.

    Args:
        counts: int64 (2, C), sums of `count_context` over images.
        class_names: C names, background first.

    Returns:
        `mean` over the foreground classes that have context, and by name for each of those `classes`; from 0 to 1.
    """
    taken, all_pixels = counts
    shares = {
        name: float(taken[index] / all_pixels[index])
        for index, name in enumerate(class_names)
        if index != BACKGROUND and all_pixels[index]
    }
    return {"mean": sum(shares.values()) / len(shares) if shares else None, "classes": shares}
