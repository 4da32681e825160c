"""Guided filter: class scores that follow the edges of the image, without a network and without training.

He, Sun, Tang 2013, "Guided Image Filtering", section 3 with the colour guide of section 3.5; formulas re-derived.

K classes (background first), H W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.special import softmax

from brnf.config import GuidedConfig

STEPS_A_CHANNEL = 255.0


def refine(image: np.ndarray, scores: np.ndarray, config: GuidedConfig) -> np.ndarray:
    """Sharpen scores into probabilities and filter them along the image, `config.rounds` times.

    Args:
        image: uint8 (H, W, 3), at any size; it is brought to that of the scores.
        scores: float32 (K, H, W) in [0, 1].
        config: Window, edge threshold, sharpness, rounds.

    Returns:
        float32 (K, H, W) in [0, 1], summing to one over the classes.
    """
    height, width = scores.shape[1:]
    colors = resize_guide(image, (height, width)).astype(np.float32) / STEPS_A_CHANNEL
    guide = np.ascontiguousarray(np.moveaxis(colors, 2, 0))  # plane by plane, everything below is several times faster
    radius = max(1, round(config.radius * max(height, width)))
    mean = window_means(guide, radius)
    inverse = inverse_covariance(guide, mean, radius, config.epsilon)
    for _ in range(config.rounds):
        sharpened = softmax(config.sharpness * scores, axis=0)
        filtered = np.empty_like(sharpened)
        for index, channel in enumerate(sharpened[1:], start=1):
            filtered[index] = guided_filter(guide, mean, inverse, channel, radius)
        filtered[0] = 1 - filtered[1:].sum(axis=0)  # what is filtered of shares sums to one, too
        filtered = filtered.clip(min=0)
        scores = filtered / filtered.sum(axis=0)
    return scores


def resize_guide(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring an image (H', W', 3) to the height and width of scores."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def inverse_covariance(guide: np.ndarray, mean: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Inverse (3, 3, H, W) of the regularised covariance of colours in the window around each pixel.

    Written out, since a library that inverts matrices one at a time takes most of the filter's time for it.

    Args:
        guide: float32 (3, H, W) in [0, 1].
        mean: Its `window_means`.
        radius: Of the square window, in pixels.
        epsilon: Variance of colour below which an edge is smoothed away.
    """
    first, second = np.triu_indices(3)
    rr, rg, rb, gg, gb, bb = window_means(guide[first] * guide[second], radius) - mean[first] * mean[second]
    rr, gg, bb = rr + epsilon, gg + epsilon, bb + epsilon
    of_red = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    cofactors = np.stack([*of_red, rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg])
    determinant = rr * cofactors[0] + rg * cofactors[1] + rb * cofactors[2]
    return (cofactors / determinant)[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]]


def guided_filter(
    guide: np.ndarray, mean: np.ndarray, inverse: np.ndarray, channel: np.ndarray, radius: int
) -> np.ndarray:
    """Replace a channel by the local linear function of the guide's colours that is nearest to it.

    Args:
        guide: float32 (3, H, W).
        mean: Its `window_means`.
        inverse: From `inverse_covariance`, for the same radius.
        channel: float32 (H, W).
        radius: In pixels.

    Returns:
        float32 (H, W).
    """
    [channel_mean] = window_means(channel[None], radius)
    together = window_means(guide * channel, radius) - mean * channel_mean
    slope = np.stack([row[0] * together[0] + row[1] * together[1] + row[2] * together[2] for row in inverse])
    offset = channel_mean - (slope[0] * mean[0] + slope[1] * mean[1] + slope[2] * mean[2])
    red, green, blue, constant = window_means(np.concatenate([slope, offset[None]]), radius)
    return red * guide[0] + green * guide[1] + blue * guide[2] + constant


def window_means(planes: np.ndarray, radius: int) -> np.ndarray:
    """Means (D, H, W) over the square window around each pixel, mirrored at the borders."""
    side = (2 * radius + 1, 2 * radius + 1)
    return np.stack([cv2.boxFilter(plane, -1, side) for plane in planes])
