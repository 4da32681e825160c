"""A recipe that trains in seconds, on a sample of a few dozen scenes."""

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
