"""Paths: made absolute, but for those that a job would write to where nobody finds them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from brnf.data import storage


def test_absolute__follows_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == f"{tmp_path}/b"


@pytest.mark.parametrize("path", ["out/run", "../run", "."])
def test_absolute__refuses_relative_paths_inside_a_job(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.INSIDE_JOB, "{}")
    with pytest.raises(ValueError, match=r"is a relative path, and a job runs in a temporary copy .* absolute path"):
        storage.absolute(path)


@pytest.mark.parametrize("path", ["/data/run", "s3://bucket/run"])
def test_absolute__lets_absolute_paths_and_uris_pass_inside_a_job(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.INSIDE_JOB, "{}")
    assert storage.absolute(path) == path


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(storage.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(storage.time, "sleep", self.wait)

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_write_bytes__waits_for_a_storage_that_is_away_for_20_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, put = Clock(monkeypatch), storage._put

    def away(path: str, content: bytes) -> None:
        if clock.now < 20:
            raise OSError(errno.EIO, "Input/output error")
        put(path, content)

    monkeypatch.setattr(storage, "_put", away)
    storage.write_bytes(str(tmp_path / "file"), b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and 20 <= clock.now < storage.PATIENCE_S


def test_write_bytes__gives_up_in_the_end_and_names_file_and_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def away(path: str, content: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "_put", away)
    with pytest.raises(OSError, match=r"cannot write .*/file: Input/output error"):
        storage.write_bytes(str(tmp_path / "file"), b"content")
    assert storage.PATIENCE_S / 2 < clock.now <= storage.PATIENCE_S


def test_write_bytes__does_not_wait_where_waiting_is_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(OSError, match=r"cannot write .*/file/below"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"content")
    assert clock.now == 0
    monkeypatch.setattr(storage, "_put", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match=r"cannot write .*: No space left"):
        storage.write_bytes(str(tmp_path / "other"), b"content")
    assert clock.now == 0
