"""cluster.yaml: Ray accepts it, its head takes no tasks, and its set-up commands give a working command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

ROOT = Path(__file__).parents[1]
COPIED = ("brnf", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster__is_what_ray_takes(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_cluster__has_an_idle_head_on_demand_and_spot_workers(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head, worker = types[cluster["head_node_type"]], types["gpu_worker"]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["idle_timeout_minutes"] > 0


def test_cluster__runs_the_ray_that_brnf_is_tested_with(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{ray.__version__}-py3")


@pytest.mark.slow
def test_setup_commands__give_a_working_command_in_a_clean_environment(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        home.joinpath("brnf").mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, home / "brnf" / name)
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home}/env/bin:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for command in cluster["setup_commands"]:
        subprocess.run(command, shell=True, env=environment, cwd=home, check=True)
    done = subprocess.run(["brnf", "--help"], env=environment, cwd=home, capture_output=True, text=True, check=True)
    assert "pipeline" in done.stdout
