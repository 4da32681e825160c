"""Folding batch norm into convolutions: says the same with fewer modules, or keeps its hands off."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brnf.inference.folding import fold_batch_norm


class Network(nn.Module):
    """Float images of bytes; batch norms with statistics and weights of their own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for values, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight.data, 0.5, 1.5),
                    (module.bias.data, -0.5, 0.5),
                ):
                    values.uniform_(low, high, generator=generator)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        found = self.body(images.float() / 255)
        return found if isinstance(found, list) else [found]


class Twice(nn.Module):
    """A convolution whose output is normalised on one way and not on the other, as in networks that norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.second(F.relu(self.norm(x)))


def images(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "test_efficientnet", "tf_efficientnet_lite0"])
def test_fold_batch_norm__says_the_same_of_any_image_without_batch_norm(name: str) -> None:
    torch.manual_seed(0)
    network = Network(timm.create_model(name, features_only=True))
    folded = fold_batch_norm(network, images(64))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    seen = images(96, seed=1)
    with torch.no_grad():
        for found, expected in zip(folded(seen), network(seen), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_fold_batch_norm__keeps_what_cannot_be_folded() -> None:
    torch.manual_seed(0)
    network = Network(Twice())
    assert fold_batch_norm(network, images(64)) is network
    lonely = Network(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    kept = [type(module) for module in fold_batch_norm(lonely, images(64)).modules()]
    assert kept.count(nn.BatchNorm2d) == 1
