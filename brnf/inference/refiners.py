"""What is done to class scores after the network: refiners behind one interface, alone or in a chain.

Scores are those of the image's own classes only, so no refiner spends time on classes that cannot be there.

K classes (background first), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from brnf.config import ParConfig, ReadOutConfig, Refiner
from brnf.inference import guided, par
from brnf.inference.crf import crf, require_crf
from brnf.inference.random_walk import walk

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""An image, uint8 (H', W', 3) at any size, and scores, float32 (K, H, W) in [0, 1], to scores of the same kind."""
Boundaries = Callable[[np.ndarray], np.ndarray]
"""An image, uint8 (H, W, 3), to its boundaries, float32 in [0, 1] at a quarter of its size."""


def check_refiners(config: ReadOutConfig) -> None:
    """Refuse a chain that lacks a package, before a run starts.

    Raises:
        ValueError: Says what to install.
    """
    if "crf" in config.refiners:
        require_crf()


def build_refiner(config: ReadOutConfig, device: torch.device, boundaries: Boundaries | None = None) -> Refine:
    """The chain that `config.refine` names; for none, scores stay as they are.

    Args:
        config: Which refiners, and how.
        device: Where `par` works; the others need no GPU.
        boundaries: The boundary network, which `walk` needs.
    """
    chain = [_build(name, config, device, boundaries) for name in config.refiners]

    def refine(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        for link in chain:
            scores = link(image, scores)
        return scores

    return refine


def _build(name: Refiner, config: ReadOutConfig, device: torch.device, boundaries: Boundaries | None) -> Refine:
    if name == "crf":
        return lambda image, scores: crf(image, scores, config.crf)
    if name == "guided":
        return lambda image, scores: guided.refine(image, scores, config.guided)
    if name == "par":
        return lambda image, scores: _par(image, scores, config.par, device)
    assert boundaries is not None, "ReadOutConfig refuses a walk without them"
    return lambda image, scores: _walk(boundaries(image), scores, config)


def _par(image: np.ndarray, scores: np.ndarray, config: ParConfig, device: torch.device) -> np.ndarray:
    """Pixel-adaptive refinement, with the image brought to the size of the scores."""
    guide = torch.from_numpy(guided.resize_guide(image, (scores.shape[1], scores.shape[2]))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return par.refine(guide.to(device), torch.from_numpy(scores)[None].to(device), config)[0].cpu().numpy()


def _walk(boundary: np.ndarray, scores: np.ndarray, config: ReadOutConfig) -> np.ndarray:
    """Random walk on the boundary's grid, and back to the size of the scores."""
    spread = walk(boundary, resize_maps(scores, boundary.shape), config.walk)
    return resize_maps(spread, scores.shape[1:])


def resize_maps(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bring maps (K, H, W) to a size: means over what a smaller grid would skip, linear between cells of a larger."""
    resized = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].numpy()
