"""Who may import whom: the directions of the layout, checked on the source, and what `import brnf` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "brnf"
FILES = sorted(PACKAGE.rglob("*.py"))

BELOW = {"training", "inference", "evaluation", "export", "denoise", "affinity", "losses", "models", "data", "config"}
CHAINS = {"ablation", "bias_curve", "pipeline", "chain", "stages"}
ALLOWED: dict[str, set[str]] = {
    "cli": {"verbs", "stage", "data"},
    "verbs": {*CHAINS, "arms", "presets", "stage", "tables", "tune_space", "distributed", *BELOW},
    "tables": set(),
    "bias_curve": {"ablation", "arms", "stage", *BELOW},
    "ablation": {"arms", "chain", "stage", "stages", *BELOW},
    "pipeline": {"chain", "stage", "stages", "tune_space", "distributed", *BELOW},
    "chain": {"stage", "stages", "distributed", *BELOW},
    "stages": {"stage", "tune_space", "distributed", *BELOW},
    "distributed": {"tune_space", *BELOW},
    "tune_space": {"config"},
    "arms": {"config"},
    "presets": set(),
    "stage": {"data", "config"},
    "training": {"denoise", "affinity", "losses", "models", "config"},
    "inference": {"denoise", "affinity", "losses", "models", "config"},
    "evaluation": {"denoise", "losses", "models", "data", "config"},
    "export": {"denoise", "losses", "models", "data", "config"},
    "denoise": {"models", "config"},
    "affinity": {"losses", "models", "config"},
    "losses": {"models", "config"},
    "models": {"config"},
    "data": {"config"},
    "config": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
"""What each room of the package may import, besides itself. `models`, `losses`, `denoise`, `training` and `inference`
get tensors and never see `data`."""

FOREIGN: dict[str, set[str]] = {
    "ray": {"distributed"},
    "torch": {"distributed", *BELOW} - {"data", "config"},
}
"""Libraries that only some rooms may import."""


def room(path: Path) -> str:
    """First folder below the package, or the module's own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names of the modules a file imports, those inside functions too."""
    package = ["brnf", *path.relative_to(PACKAGE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports__go_down_only(path: Path) -> None:
    here = room(path)
    assert here in ALLOWED, f"{path} is in a room that tests/test_imports.py does not know: say what it may import"
    for name in imported(path):
        top, inner = (*name.split("."), "")[:2]
        if top == "brnf" and inner in ALLOWED:  # else a name of brnf itself, such as __version__
            assert inner == here or inner in ALLOWED[here], f"{here} must not import {name}"
        assert top not in FOREIGN or here in FOREIGN[top], f"{here} must not import {top}"


def test_imports__importing_brnf_or_its_command_loads_neither_torch_nor_ray() -> None:
    for module in ("brnf", "brnf.cli"):
        code = f"import sys, {module}; print([name for name in ('torch', 'ray', 'cv2', 'timm') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", f"import {module} loads {done.stdout}"
