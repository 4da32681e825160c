"""What training saves: checkpoints to go on from, and finished runs to read out.

A checkpoint holds the whole state of training. Random draws are keyed by (random seed, epoch, id) or by step,
so no generator's state is in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from brnf.config import RunConfig, parse
from brnf.models.brnf import Brnf
from brnf.models.irn import BoundaryNetwork
from brnf.training.irn_step import IrnState
from brnf.training.state import MODULES

STATE = "state.pt"
WEIGHTS = "weights.safetensors"


def save_state(
    directory: Path, model: nn.Module, optimizers: dict[str, Optimizer], step: int, metrics: list[dict[str, Any]]
) -> None:
    """Write everything needed to go on after `step` steps."""
    state = {
        "model": model.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "step": step,
        "metrics": metrics,
    }
    torch.save(state, directory / STATE)


def load_state(
    directory: Path, model: nn.Module, optimizers: dict[str, Optimizer], device: torch.device
) -> tuple[int, list[dict[str, Any]]]:
    """Restore model and optimizers; returns the steps done and the metrics logged until then."""
    state = torch.load(directory / STATE, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state["step"], state["metrics"]


def final_weights(directory: Path) -> dict[str, Tensor]:
    """The model's state dict in a checkpoint."""
    return torch.load(directory / STATE, map_location="cpu", weights_only=True)["model"]


def pack_weights(state: dict[str, Tensor]) -> bytes:
    """A state dict as safetensors, the same bytes for the same tensors."""
    return safetensors.torch.save({name: value.contiguous() for name, value in sorted(state.items())})


def describe(state: dict[str, Tensor], packed: bytes, steps: int) -> dict[str, Any]:
    """What a finished run's manifest says of its weights, and of how much each module of BRNF took part."""
    summary: dict[str, Any] = {"steps": steps, "weights_sha256": hashlib.sha256(packed).hexdigest()}
    if "active_steps" in state:
        shares = state["active_steps"].double() / steps
        summary["activity"] = dict(zip(MODULES, (round(float(s), 4) for s in shares), strict=True))
        summary["sampled_features"] = int(state["sampled_bank.filled"].sum())
        summary["temperature"] = float(state["temperature"])
    return summary


def build_run(weights: bytes, manifest: dict[str, Any], device: str = "cpu") -> tuple[Brnf, RunConfig]:
    """Build a finished run's model from the contents of its files, ready to be read out.

    Args:
        weights: Content of weights.safetensors.
        manifest: Content of manifest.json.
        device: Where to put it.
    """
    config = parse(manifest["config"])
    model = Brnf(config, len(manifest["class_names"]), manifest["method"])
    state, wanted = safetensors.torch.load(weights), model.state_dict().keys()
    model.load_state_dict({name: value for name, value in state.items() if name in wanted})
    return model.to(device).eval(), config


def build_boundary_network(weights: bytes, manifest: dict[str, Any], device: str = "cpu") -> BoundaryNetwork:
    """Build the network of a finished run of method irn; arguments as for `build_run`."""
    model = IrnState(parse(manifest["config"]).backbone)
    model.load_state_dict(safetensors.torch.load(weights))
    return model.network.to(device).eval()
