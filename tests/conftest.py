"""Fixtures that many tests use: the photographs beside the checkout, and one Ray cluster for the whole session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import Stages

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on small tensors, threads that wait for each other cost time


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory with data and weights: BRNF_SHARED, or `shared` beside the checkout."""
    path = Path(os.environ.get("BRNF_SHARED") or Path(__file__).parents[2] / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs photographs: no {path}/data; set BRNF_SHARED to a directory that has them")
    return path


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Every module that a stage imports when it works, replaced."""
    fake = Stages()
    replaced = {
        "brnf.distributed.prepare": {"prepare": fake.prepare},
        "brnf.distributed.train": {"train": fake.train},
        "brnf.distributed.label": {"label": fake.label, "make_seeds": fake.make_seeds},
        "brnf.distributed.true_seeds": {"make_true_seeds": fake.make_true_seeds},
        "brnf.distributed.score": {"score": fake.score},
        "brnf.distributed.session": {"session": fake.session},
        "brnf.data.sources": {"inputs_fingerprint": lambda data, *, root, split: f"{fake.source} {split}"},
        "brnf.evaluation.evaluate": {"evaluate": fake.evaluate, "compare": fake.compare},
        "brnf.evaluation.gallery": {"gallery_rows": lambda *_, **__: []},
        "brnf.evaluation.report": {"write_report": fake.write_report},
    }
    for name, attributes in replaced.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A cluster of four logical CPUs on this machine."""
    from brnf.distributed.session import session

    with session(address="local", num_cpus=4):
        yield


@pytest.fixture(scope="session")
def kill_when() -> Callable[..., None]:
    """Start a driver, and kill it with all that it started once a condition holds (command, condition, limit_s)."""
    return _kill_when


def _kill_when(command: list[str], condition: Callable[[], bool], limit_s: float = 180) -> None:
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + limit_s
        try:
            while not condition():
                assert driver.poll() is None, driver.stderr and driver.stderr.read().decode()
                assert time.monotonic() < deadline, "the moment to kill the driver never came"
                time.sleep(0.002)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            while survivors := _members(driver.pid):
                for process in survivors:
                    os.kill(process, signal.SIGKILL)
                time.sleep(0.01)


def _members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for process in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(state[3]) == session and state[0] != "Z":
            found.append(process)
    return found
