"""A simulated cluster of a head and two nodes that declare GPUs: who asks for them, and where everybody lands.

No GPU is there, so inside its GPU slot each worker and actor computes on the CPU; what is asked for is not touched.
Ray can be started once in a process, so the cluster lives in a process of its own, for which this file is the script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 32
RECIPE = """
data: {unit_rows: 8, part_rows: 16, train_split: train, score_split: val, label_splits: [val]}
backbone: {name: test_resnet, weights: none, side_channels: [8, 8, 8, 8]}
augment: {resize_long: [64, 96], crop_size: 64}
base: {optim: {epochs: 1, batch_size: 8, lr_backbone: 0.01, lr_new: 0.1}}
label: {scales: [1.0]}
compute: {log_every: 1, checkpoint_every: 1, num_workers: 2}
"""


def test_workers_and_actors__ask_for_gpus_and_land_on_their_nodes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    gpu_nodes = set(json.loads((tmp_path / "gpu_nodes.json").read_text()))
    for role in ("worker", "actor"):
        seen = [json.loads(path.read_text()) for path in tmp_path.glob(f"{role}-*.json")]
        nodes = [entry["node"] for entry in seen]
        assert set(nodes) <= gpu_nodes and len(set(nodes)) == len(nodes), role  # one on each
        assert len(seen) == 2 or role == "actor", role  # the first actor may do all before the second is there
        assert all(len(entry["gpus"]) == 1 for entry in seen), role
    assert len(list((tmp_path / "labels/masks").iterdir())) == NUM_IMAGES


def record(folder: str, role: str) -> None:
    """Leave a file that says on which node this process runs and which GPUs Ray gave it."""
    import ray

    context = ray.get_runtime_context()
    entry = {"node": context.get_node_id(), "gpus": context.get_accelerator_ids()["GPU"]}
    Path(folder, f"{role}-{os.getpid()}.json").write_text(json.dumps(entry))


def simulate(folder: Path) -> None:
    """Prepare, train and label on the simulated cluster."""
    import dataclasses

    from ray.cluster_utils import Cluster
    from ray.train.torch import TorchConfig, TorchTrainer

    from brnf.config import load_recipe
    from brnf.data.scenes import render_sample
    from brnf.distributed import label, prepare, train, units
    from brnf.distributed.session import session

    tree, shards, base = (str(folder / name) for name in ("tree", "shards", "base"))
    (folder / "recipe.yaml").write_text(RECIPE)
    config = load_recipe(str(folder / "recipe.yaml"))
    render_sample(tree, bias=0.9, random_seed=0, num_train=NUM_IMAGES, num_val=2)

    class CpuTrainer(TorchTrainer):
        """NCCL needs real GPUs."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, torch_config=TorchConfig(backend="gloo"), **options)

    train_loop = train.train_loop

    def cpu_loop(arguments: dict[str, Any]) -> None:
        record(str(folder), "worker")
        job = arguments["job"]
        on_cpu = dataclasses.replace(job.config.compute, device="cpu")
        train_loop({"job": dataclasses.replace(job, config=dataclasses.replace(job.config, compute=on_cpu))})

    class RecordingWriter(label.MaskWriter):
        def size(self, row: dict[str, Any]) -> tuple[int, int]:
            record(str(folder), "actor")
            return super().size(row)

    ask = units.actor_resources

    def ask_and_stay_on_cpu(*arguments: Any) -> tuple[str, dict[str, Any]]:
        device, resources = ask(*arguments)
        assert device == "cuda"
        return "cpu", resources

    train.TorchTrainer, train.train_loop, units.actor_resources = CpuTrainer, cpu_loop, ask_and_stay_on_cpu
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        gpu_nodes = [cluster.add_node(num_cpus=2, num_gpus=1).node_id for _ in range(2)]
        (folder / "gpu_nodes.json").write_text(json.dumps(gpu_nodes))
        with session(cluster.address):
            prepare.prepare(config.data, root=tree, split="train", out=shards)
            train.train(config, method="sipe", shards=shards, out=base)
            writer = RecordingWriter(str(folder / "labels"))
            units.read_units(label.open_job((config.label,), config.compute, writer, run=base, shards=shards), "label")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    simulate(Path(sys.argv[1]))
