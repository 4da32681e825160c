"""Fixtures that many tests use: the photographs beside the checkout, and one Ray cluster for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on small tensors, threads that wait for each other cost more than they bring


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory with data and weights: BRNF_SHARED, or `shared` beside the checkout."""
    path = Path(os.environ.get("BRNF_SHARED") or Path(__file__).parents[2] / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs photographs: no {path}/data; set BRNF_SHARED to a directory that has them")
    return path


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A cluster of four logical CPUs on this machine."""
    from brnf.distributed.session import session

    with session(address="local", num_cpus=4):
        yield
