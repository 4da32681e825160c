"""A recipe that trains in seconds, on a sample of a few dozen scenes; and a run that nothing has trained."""

from __future__ import annotations

from collections.abc import Sequence

from brnf.config import BackboneConfig, RunConfig, as_dict
from brnf.data import storage
from brnf.data.schema import CONFIG, MANIFEST

RECIPE = """
data: {unit_rows: 8, part_rows: 16, train_split: train, score_split: val, label_splits: [val]}
backbone: {name: test_resnet, weights: none, side_channels: [8, 8, 8, 8]}
augment: {resize_long: [64, 96], crop_size: 64}
base: {optim: {epochs: 2, batch_size: 16, lr_backbone: 0.01, lr_new: 0.1}}
seeds: {scales: [1.0], flip: false}
brnf:
  optim: {epochs: 4, batch_size: 16, lr_backbone: 0.01, lr_new: 0.1}
  f1: {width: 16, pixels_per_image: 8}
  f2: {width: 16, pixels_per_image: 8}
label: {scales: [1.0]}
compute: {log_every: 1, checkpoint_every: 1, device: cpu}
"""


def write_random_run(out: str, class_names: Sequence[str]) -> None:
    """Write a base run with random weights."""
    import torch

    from brnf.models.brnf import Brnf
    from brnf.training.checkpoint import WEIGHTS, pack_weights

    backbone = BackboneConfig(name="test_resnet", weights="none", side_channels=(8, 8, 8, 8))
    config = RunConfig(backbone=backbone)
    torch.manual_seed(0)
    storage.write_bytes(storage.join(out, WEIGHTS), pack_weights(Brnf(config, len(class_names), "sipe").state_dict()))
    manifest = {"method": "sipe", "class_names": class_names, "initialisation": "none", "config": as_dict(config)}
    storage.write_json(storage.join(out, MANIFEST), manifest)
    storage.write_json(storage.join(out, CONFIG), {"config": as_dict(config)})
