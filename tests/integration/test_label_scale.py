"""A hundred thousand images: memory and work an image are the same at the end as at the beginning.

The photographs under new ids, 81 classes, a tiny network. BRNF_SCALE_IMAGES stands in for the number.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from copies import Copies, write_copies
from tiny import write_random_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
NUM_IMAGES = int(os.environ.get("BRNF_SCALE_IMAGES", 100_000))
UNIT_ROWS = 32
FLAGS = ["--label.scales", "0.5", "--label.no-flip", "--compute.device", "cpu"]
SAMPLE_SECONDS = 1.0


class Sample(NamedTuple):
    """All processes of a session at one moment."""

    images: int
    private_mb: float
    cpu_s: float


def look(session: int, parts: Path) -> Sample:
    """Sum what the processes of a session hold for themselves, and the CPU time of theirs and of children gone."""
    private, ticks = 0, 0
    for process in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            if int(state[3]) != session:
                continue
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        private += sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
        ticks += sum(int(value) for value in state[11:15])  # user, system, and the same of children waited for
    done = len(list(parts.glob("*.parquet"))) * UNIT_ROWS
    return Sample(done, private / 1024, ticks / os.sysconf("SC_CLK_TCK"))


def test_label__memory_and_work_an_image_do_not_grow(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = shared / "data/voc_subset/VOCdevkit/VOC2012/JPEGImages"
    write_copies(Copies(str(photographs), NUM_IMAGES), str(tmp_path / "shards"), UNIT_ROWS)
    write_random_run(str(tmp_path / "run"), Copies.class_names)
    command = [
        sys.executable, "-m", "brnf", "label", "--run", str(tmp_path / "run"), "--shards", str(tmp_path / "shards"),
        "--out", str(tmp_path / "labels"), *FLAGS,
    ]  # fmt: skip
    samples: list[Sample] = []
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as driver:
        while driver.poll() is None:
            samples.append(look(driver.pid, tmp_path / "labels/parts"))
            time.sleep(SAMPLE_SECONDS)
    assert driver.returncode == 0
    second, last = ([s for s in samples if low <= s.images / NUM_IMAGES < high] for low, high in ((0.1, 0.2), (0.9, 1)))
    memory = [float(np.mean([s.private_mb for s in part])) for part in (second, last)]
    work = [(part[-1].cpu_s - part[0].cpu_s) / (part[-1].images - part[0].images) for part in (second, last)]
    with capsys.disabled():
        grown = memory[1] / memory[0]
        print(f"\n{NUM_IMAGES} images: private memory {memory[0]:.0f} -> {memory[1]:.0f} MB ({grown:.3f})")
        print(f"  CPU an image {1000 * work[0]:.2f} -> {1000 * work[1]:.2f} ms ({work[1] / work[0]:.3f})")
    assert memory[1] <= 1.1 * memory[0]
    assert abs(work[1] / work[0] - 1) <= 0.15
