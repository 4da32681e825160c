"""Seeds survive the trip through a row, and belong to their shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brnf.data import storage
from brnf.data.schema import FORMAT_VERSION, MANIFEST, SEED, part_name
from brnf.data.seeds import Seeds, decode_seed, encode_seed
from brnf.data.shards import Shards, encode_rows


def scores_of(number: int) -> np.ndarray:
    """Scores of one image, all exact in float16."""
    return np.random.default_rng(number).integers(0, 1025, (3, 4, 5)).astype(np.float32) / 1024


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """The manifest of five rows in two units; nobody opens the part."""
    return Shards(str(tmp_path / "shards"), {"content_hash": "abc", "units": [[0, 0, 3], [0, 1, 2]]})


def write_seeds(out: Path, shards_hash: str) -> str:
    """A sidecar of five rows."""
    rows = [{"id": str(number), **encode_seed([0, 3, number], scores_of(number))} for number in range(5)]
    storage.write_bytes(str(out / part_name(0)), encode_rows(rows, SEED, 3))
    manifest = {"format_version": FORMAT_VERSION, "shards_hash": shards_hash, "parts": [{"name": part_name(0)}]}
    storage.write_json(str(out / MANIFEST), manifest)
    return str(out)


def test_seed__comes_back_as_it_went(tmp_path: Path, shards: Shards) -> None:
    seeds = Seeds.open(write_seeds(tmp_path / "seeds", "abc"), shards)
    rows = [row for unit in shards.units for row in seeds.read_unit(unit).to_pylist()]
    assert [row["id"] for row in rows] == list("01234")
    for number, row in enumerate(rows):
        keys, scores = decode_seed(row)
        assert (keys.dtype, scores.dtype, keys.tolist()) == (np.int16, np.float32, [0, 3, number])
        np.testing.assert_array_equal(scores, scores_of(number))


def test_seeds_of_other_shards__are_refused(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(ValueError, match=r"seeds for other shards \(content xyz\).*brnf seeds --shards"):
        Seeds.open(write_seeds(tmp_path / "seeds", "xyz"), shards)


def test_unfinished_seeds__are_refused(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(ValueError, match="the same `brnf seeds` command again"):
        Seeds.open(str(tmp_path / "seeds"), shards)
