"""A finished run read back is the model that was trained, without what only training needs."""

from __future__ import annotations

import torch

from brnf.config import as_dict, parse
from brnf.training.checkpoint import build_run, describe, pack_weights
from brnf.training.state import BrnfState

CLASSES = ("background", "cat", "dog")


def make_state() -> tuple[BrnfState, dict]:
    values = {"backbone": {"name": "test_resnet", "weights": "none", "side_channels": [8, 8, 16, 16]}}
    config = parse(values)
    torch.manual_seed(1)
    model = BrnfState(config, len(CLASSES))
    model.standardiser.update(torch.randn(48), torch.rand(48) + 5, torch.tensor(4.0))
    return model, {"config": as_dict(config), "class_names": CLASSES, "method": "brnf"}


def test_build_run__reads_out_what_was_trained() -> None:
    model, manifest = make_state()
    loaded, _ = build_run(pack_weights(model.state_dict()), manifest)
    assert not hasattr(loaded, "f2") and not loaded.training
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    allowed = torch.tensor([[True, True, False], [True, False, True]])
    with torch.no_grad():
        expected, features = model.eval().network(images), loaded.network(images).features
        torch.testing.assert_close(features, expected.features)
    maps = loaded.posterior(features, allowed)
    torch.testing.assert_close(maps, model.posterior(features, allowed))
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 4, 4))
    assert not maps[0, 2].any() and not maps[1, 1].any()


def test_pack_weights__same_tensors_same_bytes() -> None:
    state = make_state()[0].state_dict()
    shuffled = dict(reversed(list(state.items())))
    assert pack_weights(state) == pack_weights(shuffled)


def test_describe__counts_activity_and_sampled_features() -> None:
    state = make_state()[0].state_dict()
    state["active_steps"] = torch.tensor([5, 10, 0])
    state["sampled_bank.filled"] = torch.tensor([0, 7, 3])
    summary = describe(state, b"", steps=20)
    assert summary["activity"] == {"calibration": 0.25, "denoise": 0.5, "contrast": 0.0}
    assert summary["sampled_features"] == 10
