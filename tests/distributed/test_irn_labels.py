"""Sure cells: what counts as sure, where, and images that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brnf.config import CrfConfig, IrnConfig
from brnf.data.schema import SEED
from brnf.data.seeds import Seeds, decode_seed, encode_seed
from brnf.data.shards import Shards, Unit
from brnf.distributed import irn_labels
from brnf.distributed.irn_labels import _make_part, sure_cells

CONFIG = IrnConfig(crf=CrfConfig(iterations=2))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRF that changes nothing."""
    monkeypatch.setattr(irn_labels, "crf", lambda image, scores, config: scores)


def test_sure_cells__are_foreground_or_background_that_half_of_it_would_beat(plain: None) -> None:
    background = np.repeat(np.array([0.9, 0.6, 0.2], np.float32), 8)
    scores = np.stack([background, np.full(24, 0.4), np.full(24, 0.1)])[:, None].repeat(16, axis=1).astype(np.float32)
    found = sure_cells(noise(16, 24), scores, (4, 6), CONFIG)
    assert found.shape == (3, 4, 6) and found.dtype == np.float32
    assert found[:, 1].argmax(axis=0).tolist() == [0, 0, 0, 0, 1, 1]
    assert found[:, 1].sum(axis=0).tolist() == [1, 1, 0, 0, 1, 1]  # .6 beats .4, but .3 would not


def test_sure_cells__with_a_foreground_factor_trust_less_foreground(plain: None) -> None:
    scores = np.array([0.3, 0.4], np.float32)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    assert sure_cells(noise(8, 8), scores, (2, 2), CONFIG)[1].all()
    strict = IrnConfig(foreground_factor=1.5)
    assert not sure_cells(noise(8, 8), scores, (2, 2), strict).any()


def test_sure_cells__have_the_size_asked_for_and_follow_the_image() -> None:
    """Seeds that miss the edge by two cells; the CRF works at the image's size."""
    pytest.importorskip("pydensecrf")
    image = np.full((43, 61, 3), 40, np.uint8)
    image[:, 30:] = 220
    scores = np.full((2, 11, 16), 0.1, np.float32)
    scores[1, :, 9:], scores[0, :, :9] = 0.9, 0.9
    found = sure_cells(image, scores, (11, 16), IrnConfig())
    assert found.shape == (2, 11, 16) and set(np.unique(found)) == {0, 1}
    assert (found[1] == ((np.arange(16) + 0.5) * 61 / 16 >= 30)).all()


class Table:
    """Stands in for shards and for seeds."""

    def __init__(self, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
        self.table = pa.Table.from_pylist(rows, schema=schema)

    def read_unit(self, unit: Unit, columns: Any = None) -> pa.Table:
        return self.table


def test_make_part__names_images_without_a_sure_cell_and_gives_them_zeros(plain: None, tmp_path: Path) -> None:
    sound = cv2.imencode(".png", noise(9, 17))[1].tobytes()
    kept = {"orientation": 1, "width": 17, "height": 9}
    images = [
        {"id": "broken", "image": sound[:80], **kept},
        {"id": "seedless", "image": sound, **kept},
        {"id": "sound", "image": sound, **kept},
    ]
    some = encode_seed([0, 5], np.stack([np.full((3, 5), 0.1), np.full((3, 5), 0.9)]))
    seeds = [
        {"id": "broken", **some},
        {"id": "seedless", **encode_seed([0], np.zeros((1, 3, 5)))},
        {"id": "sound", **some},
    ]
    path, unit = tmp_path / "part-00000.parquet", Unit(index=0, part=0, row_group=0, num_rows=3)
    stand_ins = cast(Shards, Table(images)), cast(Seeds, Table(seeds, SEED))
    part = _make_part(*stand_ins, [unit], CONFIG, str(path))
    assert [entry["id"] for entry in part["quarantine"]] == ["broken", "seedless"]
    assert "no base seed" in part["quarantine"][1]["reason"]
    rows = pq.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == ["broken", "seedless", "sound"]
    decoded = [decode_seed(row) for row in rows]
    assert [scores.shape[1:] for _, scores in decoded] == [(3, 5)] * 3
    assert [bool(scores.any()) for _, scores in decoded] == [False, False, True]
    assert decoded[2][0].tolist() == [0, 5] and decoded[2][1][1].all()
