"""Which Ray cluster a run uses, and what is set before Ray starts."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    # Ray 2.60 starts 32 processes an execution to read Parquet footers, one for ten files; one is enough.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # A worker imports torch before it counts as started; a busy machine takes longer than the 60 s of the default.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}

WITHOUT_ADDRESS = "Without --address (and RAY_ADDRESS) a cluster is started on this machine"

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
"""stdout belongs to results and stderr to our own progress; Ray keeps what workers print in its log directory."""


@contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Hold the one Ray cluster of a run.

    If Ray runs in this process already, that cluster is used and left running. Else: `address`, else the cluster
    that RAY_ADDRESS names (Ray sets it inside a job), else a new cluster on this machine, which ends with the
    session.

    Args:
        address: Cluster to attach to; "local" starts one even where RAY_ADDRESS names another.
        num_cpus: Logical CPUs of a new cluster. At least 4 by default, since a run with actors on all of them has
            none left to read data with.

    Raises:
        ValueError: If the cluster cannot be reached.
    """
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(missing)  # before the import, at which Ray reads them

    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start(num_cpus or max(4, os.cpu_count() or 1))
    else:
        _attach(address, missing)
    try:
        yield
    finally:
        ray.shutdown()


def _start(num_cpus: int) -> None:
    """Start a cluster on this machine, closed to other users by a token that is written nowhere."""
    import ray

    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **QUIET)


def _attach(address: str, settings: dict[str, str]) -> None:
    """Attach to a cluster; its workers get the settings too (Ray refuses those that a job has set already)."""
    import ray

    _check_answers(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": settings}, **QUIET)
    except ConnectionError as error:
        raise ValueError(f"--address {address}: {error}. {WITHOUT_ADDRESS}") from error


def _check_answers(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto" and the like; Ray finds the address
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"--address {address}: no Ray cluster answers there ({error}). {WITHOUT_ADDRESS}") from error
