"""Cost of a BRNF step against a step of its base, SIPE, with a ResNet-50: same batch, alternating in one run."""

from __future__ import annotations

import os
import statistics
import time

import pytest
import torch

from brnf.config import parse
from brnf.training.batch import Batch
from brnf.training.state import new_state
from brnf.training.step import new_step

pytestmark = pytest.mark.benchmark

CLASSES, STRIDE, ROUNDS = 21, 16, 5
BATCH, CROP = (int(os.environ.get(f"BRNF_BENCHMARK_{name}", value)) for name, value in (("BATCH", 16), ("CROP", 512)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch(number: int) -> Batch:
    """Noise with two tags an image and a seed in every cell."""
    generator = torch.Generator().manual_seed(number)
    cells = CROP // STRIDE
    images = torch.randint(0, 256, (BATCH, 3, CROP, CROP), dtype=torch.uint8, generator=generator)
    allowed = torch.zeros(BATCH, CLASSES, dtype=torch.bool)
    allowed[:, 0] = True
    allowed.scatter_(1, torch.randint(1, CLASSES, (BATCH, 2), generator=generator), True)
    seed = torch.rand(BATCH, CLASSES, cells, cells, generator=generator) * allowed[:, :, None, None]
    valid = torch.ones(BATCH, cells, cells, dtype=torch.bool)
    keys = torch.arange(BATCH)
    return Batch(images.to(DEVICE), valid.to(DEVICE), allowed.to(DEVICE), keys, seed.to(DEVICE))


def test_brnf_step__takes_at_most_a_quarter_more_than_a_sipe_step(capsys: pytest.CaptureFixture[str]) -> None:
    # Everything is on from the first step; logged steps, which measure gradient shares too, are one in ten.
    config = parse(
        {
            "backbone": {"name": "resnet50", "weights": "none"},
            "augment": {"crop_size": CROP},
            "brnf": {"schedule": {"start_flows": 0, "start_use": 0, "start_contrast": 0, "ramp": 0}},
        }
    )
    torch.manual_seed(0)
    steps = {
        method: new_step(new_state(config, CLASSES, method).train().to(DEVICE), config, 1000)
        for method in ("sipe", "brnf")
    }
    seconds: dict[str, list[float]] = {method: [] for method in steps}
    for number in range(ROUNDS + 1):
        for method, step in steps.items():
            made = batch(number)
            started = time.perf_counter()
            step(made, number)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds[method].append(time.perf_counter() - started)
    sipe, brnf = (statistics.median(seconds[method][1:]) for method in ("sipe", "brnf"))
    with capsys.disabled():
        print(f"\nResNet-50, {BATCH} crops of {CROP}, {DEVICE}: {sipe:.2f} s (SIPE), {brnf:.2f} s (BRNF) a step")
        print(f"  BRNF / SIPE {brnf / sipe:.3f}")
    assert brnf <= 1.25 * sipe
