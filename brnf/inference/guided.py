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
    guide = resize_guide(image, (height, width)).astype(np.float32) / STEPS_A_CHANNEL
    radius = max(1, round(config.radius * max(height, width)))
    inverse = inverse_covariance(guide, radius, config.epsilon)
    for _ in range(config.rounds):
        sharpened = softmax(config.sharpness * scores, axis=0)
        filtered = np.stack([guided_filter(guide, inverse, channel, radius) for channel in sharpened]).clip(min=0)
        scores = filtered / filtered.sum(axis=0)  # a filter of shares sums to one, but for what is cut off below 0
    return scores


def resize_guide(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring an image (H', W', 3) to the height and width of scores."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def inverse_covariance(guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Inverse (H, W, 3, 3) of the regularised covariance of colours in the window around each pixel.

    Args:
        guide: float32 (H, W, 3) in [0, 1].
        radius: Of the square window, in pixels.
        epsilon: Variance of colour below which an edge is smoothed away.
    """
    mean = _window_mean(guide, radius)
    products = guide[..., :, None] * guide[..., None, :]
    covariance = _window_mean(products.reshape(*guide.shape[:2], 9), radius).reshape(products.shape)
    covariance -= mean[..., :, None] * mean[..., None, :]
    return np.linalg.inv(covariance + epsilon * np.eye(3, dtype=np.float32))


def guided_filter(guide: np.ndarray, inverse: np.ndarray, channel: np.ndarray, radius: int) -> np.ndarray:
    """Replace a channel by the local linear function of the guide's colours that is nearest to it.

    Args:
        guide: float32 (H, W, 3).
        inverse: From `inverse_covariance`, for the same radius.
        channel: float32 (H, W).
        radius: In pixels.

    Returns:
        float32 (H, W).
    """
    mean, channel_mean = _window_mean(guide, radius), _window_mean(channel, radius)
    together = _window_mean(guide * channel[..., None], radius) - mean * channel_mean[..., None]
    slope = np.einsum("hwij,hwj->hwi", inverse, together)
    offset = channel_mean - (slope * mean).sum(axis=2)
    return (_window_mean(slope, radius) * guide).sum(axis=2) + _window_mean(offset, radius)


def _window_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over the square window around each pixel, mirrored at the borders; (H, W) or (H, W, D)."""
    side = (2 * radius + 1, 2 * radius + 1)
    parts = np.atleast_3d(values)
    means = [cv2.boxFilter(np.ascontiguousarray(parts[..., index]), -1, side) for index in range(parts.shape[2])]
    return np.stack(means, axis=2).reshape(values.shape)
