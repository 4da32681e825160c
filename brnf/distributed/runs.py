"""Finished runs on disk or behind a URI: their files, and the model in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brnf.config import RunConfig
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.models.brnf import Brnf
from brnf.models.irn import BoundaryNetwork
from brnf.training.checkpoint import WEIGHTS, build_boundary_network, build_run


def run_manifest(run: str, methods: Sequence[str] = ("sipe", "brnf")) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        ValueError: If `run` is not one, or not of one of these methods.
    """
    path = storage.join(run, MANIFEST)
    if not storage.exists(path):
        raise ValueError(f"{run} is no finished run (no {MANIFEST} there); finish it with the `brnf train` command")
    manifest = storage.read_json(path)
    if "method" not in manifest:
        raise ValueError(f"{run} is not the directory of a run; --run takes what `brnf train --out` wrote")
    if manifest["method"] not in methods:
        raise ValueError(f"{run} is a run of method {manifest['method']}: give one of method {' or '.join(methods)}")
    return manifest


def load_run(run: str, device: str = "cpu") -> tuple[Brnf, RunConfig, dict[str, Any]]:
    """A finished run's model in evaluation mode, its configuration and its manifest."""
    manifest = run_manifest(run)
    model, config = build_run(storage.read_bytes(storage.join(run, WEIGHTS)), manifest, device)
    return model, config, manifest


def load_boundary_network(run: str, device: str = "cpu") -> BoundaryNetwork:
    """The network that `brnf irn` trained, in evaluation mode.

    Raises:
        ValueError: If `run` is not a finished run of that command.
    """
    manifest = run_manifest(run, ("irn",))
    return build_boundary_network(storage.read_bytes(storage.join(run, WEIGHTS)), manifest, device)
