"""The deployed model: the posterior's prior."""

from __future__ import annotations

import pytest
import torch

from brnf.config import parse
from brnf.models.brnf import Brnf
from brnf.models.mixture import weigh_background


@pytest.fixture
def model() -> Brnf:
    config = parse({"backbone": {"name": "test_resnet", "weights": "none", "side_channels": [4, 4, 4, 4]}})
    torch.manual_seed(0)
    return Brnf(config, 4, "brnf").eval()


def test_posterior__prior_odds_of_the_background_multiply_its_odds_against_every_class(model: Brnf) -> None:
    features = torch.randn(2, 16, 3, 3)
    allowed = torch.tensor([[True, True, False, True], [True, False, True, False]])
    uniform, favoured = (weigh_background(model.posterior(features, allowed), odds) for odds in (1.0, 3.0))
    for found in (uniform, favoured):
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 3))
        assert (found.masked_select(~allowed[:, :, None, None]) == 0).all()
    for index in (1, 3):
        odds = [found[0, 0] / found[0, index] for found in (favoured, uniform)]
        torch.testing.assert_close(odds[0], 3 * odds[1], rtol=1e-4, atol=0)
