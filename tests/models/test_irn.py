"""The boundary network: shapes, what learns, the displacement's mean, and its answer for an image."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from brnf.config import BackboneConfig
from brnf.models.backbones import load_weights
from brnf.models.irn import BoundaryNetwork, MeanShift

BACKBONE = BackboneConfig(name="test_resnet", weights="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def network() -> BoundaryNetwork:
    torch.manual_seed(0)
    made = BoundaryNetwork(BACKBONE)
    made.backbone.load_state_dict(load_weights(BACKBONE))
    return made.eval()


def pixels(height: int, width: int, random_seed: int = 0) -> np.ndarray:
    return np.random.default_rng(random_seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (61, 90), (33, 35), (5, 200)])
def test_boundary__is_a_quarter_of_the_image_whatever_its_size(size: tuple[int, int], network: BoundaryNetwork) -> None:
    found = network.boundary(pixels(*size))
    assert found.shape == (-(-size[0] // 4), -(-size[1] // 4))
    assert found.dtype == np.float32 and 0 < found.min() and found.max() < 1


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_forward__brings_every_level_to_the_shallowest(stride: int) -> None:
    backbone = BackboneConfig(name="test_resnet", weights="none", output_stride=stride)
    field = BoundaryNetwork(backbone)(torch.zeros(2, 3, 76, 100, dtype=torch.uint8))
    assert field.boundary.shape == (2, 19, 25) and field.displacement.shape == (2, 2, 19, 25)


def test_network__refuses_a_backbone_without_a_level_at_stride_4(monkeypatch: pytest.MonkeyPatch) -> None:
    finer = timm.create_model("test_resnet", features_only=True, out_indices=(0, 1, 2, 3))
    monkeypatch.setattr("brnf.models.irn.build_backbone", lambda config: finer)
    with pytest.raises(ValueError, match=r"backbone.name is 'test_resnet'.* stride 4, not 2"):
        BoundaryNetwork(BACKBONE)


def test_boundary__of_a_mirror_image_is_the_mirrored_boundary(network: BoundaryNetwork) -> None:
    image = pixels(48, 64)
    np.testing.assert_allclose(network.boundary(image[:, ::-1]), network.boundary(image)[:, ::-1], atol=1e-6)


def test_boundary__is_the_sigmoid_of_the_mean_logit_of_image_and_mirror_image(network: BoundaryNetwork) -> None:
    image = torch.from_numpy(pixels(48, 64)).permute(2, 0, 1)
    with torch.no_grad():
        plain, mirrored = (network(view[None]).boundary[0] for view in (image, image.flip(-1)))
    expected = 1 / (1 + np.exp(-(plain + mirrored.flip(-1)).double().numpy() / 2))
    np.testing.assert_allclose(network.boundary(image.permute(1, 2, 0).numpy()), expected, atol=1e-6)


def test_training__reaches_the_new_layers_and_nothing_else() -> None:
    network = BoundaryNetwork(BACKBONE).train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    boundary, displacement = network.parameter_groups()
    optimizer = torch.optim.SGD([*boundary, *displacement], lr=1.0)
    field = network(torch.from_numpy(pixels(64, 64)).permute(2, 0, 1)[None])
    (field.boundary.square().sum() + field.displacement.square().sum()).backward()
    optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in (*boundary, *displacement))
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert {*network.parameters()} == {*boundary, *displacement, *network.backbone.parameters()}
    after = network.backbone.state_dict()  # batch norm's statistics are among them
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_heads__share_no_gradient() -> None:
    network = BoundaryNetwork(BACKBONE).train()
    boundary, displacement = network.parameter_groups()
    network(torch.from_numpy(pixels(64, 64)).permute(2, 0, 1)[None]).boundary.square().sum().backward()
    assert all(parameter.grad is not None for parameter in boundary)
    assert all(parameter.grad is None for parameter in displacement)


def test_mean_shift__takes_out_the_mean_over_all_cells_and_not_that_of_batch_means() -> None:
    shift, generator = MeanShift(), torch.Generator().manual_seed(0)
    fields = [
        torch.randn(count, 2, 3, 5, generator=generator) + torch.tensor([mean, -7.0]).view(2, 1, 1)
        for count, mean in ((1, 100.0), (4, 0.5), (2, 3.0))
    ]
    for field in fields:
        shift.update(field.double().sum(dim=(0, 2, 3)), torch.tensor(field[:, 0].numel()))
    every = torch.cat(fields).double()
    expected = every - every.mean(dim=(0, 2, 3)).view(2, 1, 1)
    torch.testing.assert_close(torch.cat([shift(field) for field in fields]).double(), expected, atol=1e-4, rtol=0)


def test_displacement__is_shifted_in_evaluation_mode_only() -> None:
    network, images = BoundaryNetwork(BACKBONE), torch.from_numpy(pixels(64, 64)).permute(2, 0, 1)[None]
    network.mean_shift.update(torch.tensor([6.0, -2.0]), torch.tensor(2))
    with torch.no_grad():
        raw, shifted = network.train()(images).displacement, network.eval()(images).displacement
    moved = (raw - shifted).mean(dim=(0, 2, 3))
    torch.testing.assert_close(moved, torch.tensor([3.0, -1.0]), atol=1e-4, rtol=0)
