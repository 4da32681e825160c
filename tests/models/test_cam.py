"""The base network's maps and prototypes against the formulas of SIPE, written as loops in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from brnf.config import BackboneConfig, CamConfig
from brnf.models.backbones import load_weights
from brnf.models.cam import CamNetwork, class_maps, normalise_maps, prototype_maps

TINY = BackboneConfig(name="test_resnet", weights="none", side_channels=(8, 8, 16, 16))


def oracle(
    cam: Tensor, features: Tensor, allowed: Tensor, b0: float, mask_absent: bool
) -> tuple[Tensor, Tensor, float]:
    """One image, cell by cell: cam (C-1, P), features (D, P), allowed (C,) -> M (C, P), P (C, P), consistency."""
    foreground = [
        [max(value, 0.0) / (max(max(row), 0.0) + 1e-5) for value in row] for row in cam.tolist()
    ]
    if mask_absent:
        foreground = [row if allowed[c + 1] else [0.0] * len(row) for c, row in enumerate(foreground)]
    background = [1 - max(column) for column in zip(*foreground, strict=True)]
    maps = torch.tensor([background, *foreground], dtype=torch.float64) * allowed[:, None]
    num_classes, cells = maps.shape
    winner = []
    for i in range(cells):
        relation = torch.tensor(
            [max(float(torch.cosine_similarity(features[:, i], features[:, j], dim=0)), 0.0) for j in range(cells)]
        ).double()
        iou = []
        for c in range(num_classes):
            common = float((relation * maps[c]).sum())
            union = float(relation.sum() + maps[c].sum()) - common
            iou.append((b0 if c == 0 else 1.0) * common / union if allowed[c] else -1.0)
        winner.append(max(range(num_classes), key=iou.__getitem__))
    similar = torch.zeros_like(maps)
    for c in range(num_classes):
        members = [i for i in range(cells) if winner[i] == c]
        if members and allowed[c]:
            prototype = features[:, members].mean(dim=1)
            similar[c] = torch.cosine_similarity(features, prototype[:, None], dim=0).clamp_min(0)
    scaled = similar / (similar.amax(dim=1, keepdim=True) + 1e-5)
    return maps, similar, float((maps - scaled).abs().mean())


@pytest.mark.parametrize(("b0", "mask_absent"), [(0.5, True), (1.0, True), (0.5, False)])
def test_maps__match_the_formulas(b0: float, mask_absent: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    cam = torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64)
    features = torch.randn(3, 6, 4, 5, generator=generator, dtype=torch.float64)
    allowed = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    config = CamConfig(background_factor=b0, mask_absent=mask_absent)
    maps = class_maps(cam, allowed, mask_absent)
    found = prototype_maps(features, features, maps, allowed, torch.ones(3, 4, 5, dtype=torch.bool), config)
    difference = (maps - normalise_maps(found.maps)).abs().mean(dim=(1, 2, 3))
    for n in range(3):
        expected = oracle(cam[n].flatten(1), features[n].flatten(1), allowed[n], b0, mask_absent)
        torch.testing.assert_close(maps[n].flatten(1), expected[0])
        torch.testing.assert_close(found.maps[n].flatten(1), expected[1], atol=1e-6, rtol=0)  # relation is float32
        assert float(difference[n]) == pytest.approx(expected[2], abs=1e-6)


def test_prototype_maps__ignore_what_lies_outside_the_image() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 6, 5, 5, generator=generator)
    allowed = torch.tensor([[True, True, False]])
    valid = torch.zeros(1, 5, 5, dtype=torch.bool)
    valid[:, :3, :4] = True
    maps = class_maps(torch.randn(1, 2, 5, 5, generator=generator), allowed) * valid[:, None]
    whole = prototype_maps(features, features, maps, allowed, valid, CamConfig())
    cut = (..., slice(0, 3), slice(0, 4))
    inside = prototype_maps(features[cut], features[cut], maps[cut], allowed, valid[cut], CamConfig())
    torch.testing.assert_close(whole.maps[cut], inside.maps)
    assert whole.maps[:, :, 3:].abs().sum() == 0


def test_network__shallow_levels_never_learn_and_the_rest_does() -> None:
    network = CamNetwork(TINY, CamConfig(), num_classes=4)
    network.backbone.load_state_dict(load_weights(TINY))
    network.train()
    output = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    (output.scores.sum() + output.features.square().sum()).backward()
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert output.features.shape == (2, network.feature_dim, 4, 4)


def test_network__frozen_batch_norm_gives_the_same_in_training_and_evaluation() -> None:
    network = CamNetwork(TINY, CamConfig(), num_classes=4)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(network.train()(images).cam, network.eval()(images).cam)


def test_backbone__errors_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"backbone\.name is 'resnet5000'"):
        CamNetwork(dataclasses.replace(TINY, name="resnet5000"), CamConfig(), 4)
    with pytest.raises(ValueError, match=r"backbone\.weights.*no such file"):
        load_weights(dataclasses.replace(TINY, weights="absent.pth"))


def test_load_weights__refuses_those_of_another_model(tmp_path) -> None:
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit test_resnet"):
        load_weights(dataclasses.replace(TINY, weights=str(tmp_path / "other.pth")))
