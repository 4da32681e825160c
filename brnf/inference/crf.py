"""Dense CRF: class scores that follow the colours of the image, by pydensecrf2 (the extra `crf`).

Kraehenbuehl, Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials". Kernels and
unaries are those that methods of this field publish their figures with. Only the classes given take part.

K classes (background first), H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from brnf.config import CrfConfig, CrfPreset
from brnf.inference.guided import resize_guide

CERTAINTY = 0.7
"""Probability of the best class where the unary is made of hard labels (IRN)."""
INSTALL = "pip install 'brnf[crf]'"


class Kernels(NamedTuple):
    """Two Gaussian kernels: of places, and of places with colours."""

    hard: bool
    """Unary from the best class alone, or from the scores."""
    place: float
    """Standard deviation in pixels."""
    place_weight: float
    far: float
    """Standard deviation in pixels, of places with colours."""
    color: float
    """Standard deviation in steps of 256."""
    color_weight: float


PRESETS: dict[CrfPreset, Kernels] = {
    "irn": Kernels(hard=True, place=3, place_weight=3, far=50, color=5, color_weight=10),
    "clip_es": Kernels(hard=False, place=1, place_weight=3, far=67, color=3, color_weight=4),
    "deeplab": Kernels(hard=False, place=3, place_weight=3, far=80, color=13, color_weight=10),
    "afa": Kernels(hard=False, place=3, place_weight=3, far=64, color=5, color_weight=4),
}
"""Source: the public code of IRN (and SIPE), CLIP-ES, DeepLab as CRFs are quoted from it, AFA (and ToCo)."""


def require_crf() -> None:
    """Raise a ValueError that says what to install unless the CRF's package is there."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the dense CRF's package is not installed: {INSTALL}") from error


def crf(image: np.ndarray, scores: np.ndarray, config: CrfConfig) -> np.ndarray:
    """Mean-field marginals of a dense CRF over the classes given.

    Args:
        image: uint8 (H', W', 3), at any size; it is brought to that of the scores.
        scores: float32 (K, H, W) in [0, 1].
        config: Preset, iterations, sharpness.

    Returns:
        float32 (K, H, W), summing to one over the classes.
    """
    import pydensecrf.densecrf as dense
    from pydensecrf.utils import unary_from_labels, unary_from_softmax

    classes, height, width = scores.shape
    if classes == 1:
        return np.ones_like(scores)
    kernels = PRESETS[config.preset]
    if kernels.hard:
        unary = unary_from_labels(scores.argmax(axis=0), classes, gt_prob=CERTAINTY, zero_unsure=False)
    else:
        unary = unary_from_softmax(softmax(config.sharpness * scores, axis=0))
    field = dense.DenseCRF2D(width, height, classes)
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(sxy=kernels.place, compat=kernels.place_weight)
    guide = np.ascontiguousarray(resize_guide(image, (height, width)))
    field.addPairwiseBilateral(sxy=kernels.far, srgb=kernels.color, rgbim=guide, compat=kernels.color_weight)
    return np.asarray(field.inference(config.iterations), dtype=np.float32).reshape(scores.shape)
