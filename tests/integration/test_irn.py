"""`brnf irn` on Ray: labels and network end to end; workers, kills and repetition change nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brnf.cli import main
from brnf.config import RunConfig, overlay, parse
from brnf.stage import run_stage
from brnf.stages import true_seeds_stage

pytestmark = pytest.mark.ray

EPOCHS, STEPS_PER_EPOCH = 4, 3
EXACT, TOLERANCE = 1e-5, 1e-2
"""Relative difference of any measure between one and two workers, in the first epoch and later: sums in another order,
and then displacements whose L1 turns its sign for it (measured: 2e-7 in eight steps, 7e-4 in the end)."""
RECIPE: dict[str, Any] = {
    "data": {"unit_rows": 8, "part_rows": 16},
    "backbone": {"name": "test_resnet", "weights": "none"},
    "augment": {"resize_long": [64, 96], "crop_size": 64},
    "irn": {
        "optim": {"epochs": EPOCHS, "batch_size": 8, "lr_backbone": 0.0, "lr_new": 0.1},
        "radius": 4,
        "crf": {"iterations": 2},
    },
    "compute": {"device": "cpu", "log_every": 1, "checkpoint_every": 5},
}


def config(**values: Any) -> RunConfig:
    return overlay(parse(RECIPE), values)


@dataclass(frozen=True)
class Made:
    """Inputs of `brnf irn` and what it made of them."""

    shards: Path
    seeds: Path
    irn: Path

    def arguments(self, out: Path) -> list[str]:
        return ["irn", "--shards", str(self.shards), "--seeds", str(self.seeds), "--out", str(out)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Made:
    from brnf.data.scenes import render_sample
    from brnf.distributed.prepare import prepare

    out = tmp_path_factory.mktemp("irn")
    made = Made(out / "shards", out / "seeds", out / "irn")
    render_sample(str(out / "tree"), bias=0.9, random_seed=0, num_train=26, num_val=1)
    prepare(config().data, root=str(out / "tree"), split="train", out=str(made.shards))
    run_stage(true_seeds_stage(config(), shards=str(made.shards), out=str(made.seeds)))
    main(made.arguments(made.irn))  # by the recipe of the seeds
    return made


def rows(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without the clock's."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in found]


def test_irn__learns_then_measures_and_its_network_answers(undisturbed: Made) -> None:
    from brnf.distributed.runs import load_boundary_network, run_manifest

    manifest = json.loads((undisturbed.irn / "manifest.json").read_text())
    steps = (EPOCHS + 1) * STEPS_PER_EPOCH
    assert (manifest["method"], manifest["steps"]) == ("irn", steps)
    found = rows(undisturbed.irn)
    assert len(found) == steps and found[-1]["epoch"] == EPOCHS
    learned = [row["displacement_foreground"] for row in found if "displacement_foreground" in row]
    assert len(learned) == EPOCHS * STEPS_PER_EPOCH and np.mean(learned[-3:]) < np.mean(learned[:3])
    network = load_boundary_network(str(undisturbed.irn))
    boundary = network.boundary(np.zeros((50, 70, 3), np.uint8))
    assert boundary.shape == (13, 18) and not network.training
    assert float(network.mean_shift.count) == pytest.approx(STEPS_PER_EPOCH * 8 * 16 * 16, rel=0.5)
    with pytest.raises(ValueError, match="method irn: give one of method sipe or brnf"):
        run_manifest(str(undisturbed.irn))


def test_irn__labels_are_a_sidecar_of_the_shards(undisturbed: Made) -> None:
    from brnf.data.seeds import Seeds, decode_seed
    from brnf.data.shards import Shards

    shards = Shards.open(str(undisturbed.shards))
    labels = Seeds.open(str(undisturbed.irn / "labels"), shards)
    assert labels.manifest["num_refused"] == 0 and not (undisturbed.irn / "labels" / "records").exists()
    for unit in shards.units:
        table = labels.read_unit(unit)
        assert table["id"].equals(shards.read_unit(unit, ["id"])["id"])
        for row in table.to_pylist():
            keys, scores = decode_seed(row)
            assert len(keys) == len(scores) >= 2 and set(np.unique(scores)) == {0, 1}
            assert scores.sum(axis=0).max() == 1


def test_irn__again_has_nothing_to_do(undisturbed: Made, capsys: pytest.CaptureFixture[str]) -> None:
    main([*undisturbed.arguments(undisturbed.irn), "--json"])
    assert json.loads(capsys.readouterr().out)["ran"] is False


def test_irn__two_workers_give_the_losses_and_weights_of_one(undisturbed: Made, tmp_path: Path) -> None:
    from brnf.distributed.runs import load_boundary_network
    from brnf.distributed.train import train

    options, labels = config(**{"compute.num_workers": 2}), str(undisturbed.irn / "labels")
    train(options, method="irn", shards=str(undisturbed.shards), seeds=labels, out=str(tmp_path))
    worst = []
    for one, two in zip(rows(undisturbed.irn), rows(tmp_path), strict=True):
        assert one.keys() == two.keys()
        worst.append(max(abs(one[name] - two[name]) / max(abs(one[name]), 0.1) for name in one))
    print(f"largest relative difference {max(worst[:STEPS_PER_EPOCH]):.1e}, later {max(worst):.1e}")
    assert max(worst[:STEPS_PER_EPOCH]) < EXACT and max(worst) < TOLERANCE
    one, two = (load_boundary_network(str(run)).state_dict() for run in (undisturbed.irn, tmp_path))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_irn__killed_in_the_middle_it_ends_with_the_same_bytes(
    undisturbed: Made, tmp_path: Path, kill_when: Callable[..., None]
) -> None:
    out = tmp_path / "irn"

    def between_checkpoints() -> bool:
        return (out / "metrics.jsonl").exists() and len(rows(out)) >= 7

    kill_when([sys.executable, "-m", "brnf", *undisturbed.arguments(out)], between_checkpoints)
    assert (out / "labels" / "done.json").exists() and not (out / "manifest.json").exists()
    main(undisturbed.arguments(out))
    for name in ("labels/manifest.json", "weights.safetensors", "manifest.json"):
        assert (out / name).read_bytes() == (undisturbed.irn / name).read_bytes(), name
    assert rows(out) == rows(undisturbed.irn)
