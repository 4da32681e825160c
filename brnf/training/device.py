"""Every choice of device and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def resolve_device(setting: str) -> torch.device:
    """The device that `compute.device` means on this machine.

    Raises:
        ValueError: If it asks for a GPU that is not there.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting == "cuda" and not torch.cuda.is_available():
        raise ValueError("compute.device is 'cuda', but torch sees no GPU here; give auto or cpu")
    return torch.device(setting)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which the network runs; flows and losses leave it (see models/mixture.py)."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
