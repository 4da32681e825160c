"""Paths: made absolute, but for those that a job would write to where nobody finds them."""

from __future__ import annotations

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
