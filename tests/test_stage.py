"""A stage's directory may hold what other stages own: it is neither foreign nor cleared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brnf.config import RunConfig
from brnf.stage import Stage, run_stage


def stage(out: Path, matters: str, beside: tuple[str, ...] = ()) -> Stage:
    def work() -> dict[str, Any]:
        (out / matters).write_text("")
        return {}

    owned = {"out": str(out), "matters": {"a": matters}, "beside": beside, "work": work}
    return Stage(name="irn", version=1, config=RunConfig(), inputs={}, **owned)


def test_run_stage__leaves_what_lies_beside(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "part").write_text("kept")
    with pytest.raises(ValueError, match="did not write"):
        run_stage(stage(tmp_path, "one"))
    run_stage(stage(tmp_path, "one", ("labels",)))
    run_stage(stage(tmp_path, "two", ("labels",)), replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "done.json", "labels", "two"]
    assert (tmp_path / "labels" / "part").read_text() == "kept"
