"""One stage of the pipeline and the directory it owns: up to date, unfinished, or made from something else.

A stage's key is a hash of its name, its version, the configuration that matters to it and the manifests of its
inputs. `config.json` carries the key from the beginning, `done.json` repeats it and is written last. So:
the key in done.json is ours -> nothing to do; the key in config.json is ours -> go on where it stopped;
another key -> the directory belongs to other inputs and is refused, or done again where the caller owns it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from brnf import __version__
from brnf.config import RunConfig, as_dict, config_hash
from brnf.data import storage
from brnf.data.schema import CONFIG, DONE, MANIFEST

PipelineStage = Literal["prepare", "base", "seeds", "clean", "brnf", "label", "evaluate", "report"]
"""In the order of the chain."""
StageName = PipelineStage | Literal["irn", "tune", "score", "export"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage would do, and everything that decides whether it has to."""

    name: StageName
    """What messages call it."""
    version: int
    """Raised when the code of the stage changes what it writes for the same inputs."""
    out: str
    """The directory it writes."""
    matters: dict[str, Any]
    """The part of the configuration that its output depends on."""
    config: RunConfig
    """The whole resolved configuration, for the record."""
    inputs: dict[str, str]
    """What it reads, by role: hashes, from `manifest_hash`."""
    work: Callable[[], dict[str, Any]]
    """Does it, or what is left of it, and returns its manifest."""
    beside: tuple[str, ...] = ()
    """Names in `out` that other stages own."""

    @property
    def key(self) -> str:
        """Sixteen hex digits that change with whatever the output depends on."""
        return content_hash([self.name, self.version, self.matters, self.inputs])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A stage that is complete."""

    stage: StageName
    out: str
    manifest: dict[str, Any]
    ran: bool
    """False if it was up to date already."""

    @property
    def refused(self) -> int:
        """Inputs that were refused; the manifest names each with its reason."""
        return len(self.manifest.get("quarantine", ()))


def content_hash(values: Any) -> str:
    """Sixteen hex digits of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def manifest_hash(directory: str) -> str:
    """Hash of what a finished directory says it holds.

    Raises:
        ValueError: If the directory is not finished.
    """
    if not storage.exists(storage.join(directory, MANIFEST)):
        raise ValueError(f"{directory} holds no {MANIFEST}: no stage of brnf has finished there; run that stage first")
    return hashlib.sha256(storage.read_bytes(storage.join(directory, MANIFEST))).hexdigest()[:16]


def is_done(out: str, key: str) -> bool:
    """Whether `out` was finished with this key."""
    return _key_in(out, DONE) == key


def run_stage(
    stage: Stage, *, force: bool = False, replace: bool = False, begin: Callable[[], Any] = lambda: None
) -> Outcome:
    """Bring a stage up to date.

    Args:
        stage: The stage.
        force: Delete what is there and do it again.
        replace: Do again what was made from other inputs (the pipeline, which owns its directories) instead of
            refusing it (single commands).
        begin: Called once before work starts and not at all if the stage is up to date; starts Ray, for instance.

    Raises:
        ValueError: If the directory holds files that no stage wrote, or was made from other inputs and `replace`
            and `force` are off.
    """
    if not force and is_done(stage.out, stage.key):
        manifest = storage.read_json(storage.join(stage.out, MANIFEST))
        return Outcome(stage=stage.name, out=stage.out, manifest=manifest, ran=False)
    _refuse_foreign(stage)
    found = _key_in(stage.out, CONFIG)
    if found is not None and (force or found != stage.key):
        if not (force or replace):
            _refuse_other(stage)
        clear(stage.out, stage.beside)
    begin()
    started = time.monotonic()
    _write_config(stage)
    manifest = stage.work()
    done = {"stage": stage.name, "key": stage.key, "seconds": round(time.monotonic() - started, 1)}
    storage.write_json(storage.join(stage.out, DONE), done)
    return Outcome(stage=stage.name, out=stage.out, manifest=manifest, ran=True)


def clear(out: str, beside: Sequence[str] = ()) -> None:
    """Delete what a stage wrote: the marker first and the record that it was ours last, so that it can be repeated.

    What lies `beside`, by name, is left alone.
    """
    storage.delete(storage.join(out, DONE))
    for name in _entries(out):
        if name != CONFIG and name not in beside:
            storage.delete(storage.join(out, name))
    storage.delete(storage.join(out, CONFIG))


@functools.cache
def code_version() -> str:
    """Version of brnf, with the git commit where it runs from a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{found}"


def _write_config(stage: Stage) -> None:
    record = {
        "stage": stage.name,
        "stage_version": stage.version,
        "key": stage.key,
        "code_version": code_version(),
        "config_hash": config_hash(stage.config, "compute"),
        "inputs": stage.inputs,
        "config": as_dict(stage.config),
    }
    storage.write_json(storage.join(stage.out, CONFIG), record)


def _key_in(out: str, name: str) -> str | None:
    """The key that `config.json` or `done.json` of a directory carries; None if the file is not there."""
    path = storage.join(out, name)
    return storage.read_json(path).get("key") if storage.exists(path) else None


def _entries(out: str) -> list[str]:
    """Names of the files and folders in a directory; empty if it does not exist."""
    filesystem, inner = storage.open_location(out)
    return [info.base_name for info in filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))]


def _refuse_foreign(stage: Stage) -> None:
    names = [name for name in _entries(stage.out) if not name.endswith(".partial") and name not in stage.beside]
    if names and CONFIG not in names:
        raise ValueError(
            f"{stage.out} holds files that brnf did not write ({', '.join(sorted(names)[:3])}): "
            "give a directory that is empty or new"
        )


def _refuse_other(stage: Stage) -> None:
    record = storage.read_json(storage.join(stage.out, CONFIG))
    if record["stage"] != stage.name:
        difference = f"it is the output of stage {record['stage']!r}"
    elif record["stage_version"] != stage.version:
        difference = f"brnf {record['code_version']} wrote it, and that stage has changed since"
    elif record["inputs"] != stage.inputs:
        before, roles = record["inputs"], sorted({*record["inputs"], *stage.inputs})
        roles = [role for role in roles if before.get(role) != stage.inputs.get(role)]
        difference = f"it was made from other inputs ({', '.join(roles)})"
    else:
        difference = "it was made with another configuration"
    raise ValueError(
        f"{stage.out} is taken: {difference}. Give another directory, or --force to delete what is there and start anew"
    )
