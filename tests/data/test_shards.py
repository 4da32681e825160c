"""Parts, units and manifest; the plan of an epoch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brnf.data import storage
from brnf.data.records import Entry, Record, Refusal
from brnf.data.schema import MANIFEST, SHARD
from brnf.data.shards import Shards, build_manifest, epoch_plan, rank_slice, write_part


@dataclass(frozen=True)
class Numbers:
    """A source without files: image n is the bytes of n, every seventh is refused."""

    kind: str = "numbers"
    class_names: tuple[str, ...] = ("background", "even", "odd", "never")
    masks: str | None = None
    total: int = 50
    image_size: int = 10

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        """All numbers in order."""
        return [Entry(str(n), f"{n}.jpg") for n in range(self.total)], [Refusal("x", "x.jpg", "listed wrongly")]

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        """A row, or a refusal."""
        number = int(entry.id)
        if number % 7 == 6:
            raise ValueError("a seventh")
        image = str(number).encode() * self.image_size
        return Record(entry.id, image, (1 + number % 2,), b"mask", None, 1, 4, 3), "tags"

    def fingerprint(self) -> str:
        """Never changes."""
        return "0"


def write_shards(out: Path, source: Numbers | None = None, part_rows: int = 20, unit_rows: int = 8) -> Shards:
    """Prepare without Ray."""
    source = source or Numbers()
    entries, refused = source.list_entries()
    parts = [
        write_part(source, entries[start : start + part_rows], str(out), part=part, unit_rows=unit_rows)
        for part, start in enumerate(range(0, len(entries), part_rows))
    ]
    manifest = build_manifest(source, "train", parts[::-1], refused, unit_rows)
    storage.write_json(storage.join(str(out), MANIFEST), manifest)
    return Shards.open(str(out))


def test_units__give_back_every_row_once_and_in_order(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    tables = [shards.read_unit(unit, ["id", "image", "image_labels"]) for unit in shards.units]
    assert [len(table) for table in tables] == [unit.num_rows for unit in shards.units] == [8, 8, 2, 8, 8, 1, 8]
    assert [unit.index for unit in shards.units] == list(range(7))
    rows = [row for table in tables for row in table.to_pylist()]
    sound = [n for n in range(50) if n % 7 != 6]
    assert rows == [
        {"id": str(n), "image": str(n).encode() * 10, "image_labels": [1 + n % 2]} for n in sound
    ]
    assert shards.num_images == len(sound)


def test_manifest__counts_and_names(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    manifest = shards.manifest
    assert manifest["class_counts"] == {"even": 21, "odd": 22, "never": 0}
    assert manifest["label_source"] == "tags"
    assert manifest["quarantine"][0] == {"id": "x", "file": "x.jpg", "reason": "listed wrongly"}
    assert [row["id"] for row in manifest["quarantine"][1:]] == [str(n) for n in range(6, 50, 7)]
    assert [part["rows"] for part in manifest["parts"]] == [18, 17, 8]
    for part in manifest["parts"]:
        assert part["bytes"] == (tmp_path / part["name"]).stat().st_size
    assert (shards.num_classes, shards.class_names[0]) == (4, "background")


def test_label_source__is_counted_if_it_is_mixed(tmp_path: Path) -> None:
    source = Numbers()
    part = write_part(source, source.list_entries()[0][:3], str(tmp_path), part=0, unit_rows=2)
    mixed = [{**part, "label_sources": {"xml": 2, "masks": 1}}]
    assert build_manifest(source, "train", mixed, [], 2)["label_source"] == {"masks": 1, "xml": 2}


def test_part_without_a_sound_image__is_left_out(tmp_path: Path) -> None:
    source = Numbers()
    parts = [
        write_part(source, entries, str(tmp_path), part=part, unit_rows=8)
        for part, entries in enumerate([[Entry("6", "6.jpg")], [Entry("1", "1.jpg")]])
    ]
    manifest = build_manifest(source, "train", parts, [], 8)
    assert (manifest["num_images"], manifest["units"]) == (1, [[1, 0, 1]])
    assert storage.list_names(str(tmp_path)) == ["part-00001.parquet"]


def test_bytes__and_content_hash_repeat_wherever_they_lie(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path / "a"), write_shards(tmp_path / "b")
    assert first.manifest == second.manifest
    assert first.content_hash == second.content_hash
    other = write_shards(tmp_path / "c", Numbers(image_size=11))
    renamed = write_shards(tmp_path / "d", replace(Numbers(), class_names=("background", "even", "uneven", "never")))
    assert len({first.content_hash, other.content_hash, renamed.content_hash}) == 3


def test_read_unit__leaves_other_columns_alone(tmp_path: Path) -> None:
    """Masks that are rubbish on disk do not show while they are not asked for."""
    shards = write_shards(tmp_path, Numbers(image_size=1))
    path = tmp_path / "part-00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(SHARD.names.index("mask"))
    assert column.path_in_schema == "mask"
    content = bytearray(path.read_bytes())
    start, size = column.data_page_offset, column.total_compressed_size
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    assert len(shards.read_unit(shards.units[0], ["image"])) == 8
    with pytest.raises(OSError):
        shards.read_unit(shards.units[0], ["mask"])


def test_shards__travel_to_tasks(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    shards.units  # noqa: B018  fills the cache, which travels along
    arrived = pickle.loads(pickle.dumps(shards))
    assert arrived == shards
    assert arrived.read_unit(arrived.units[3], ["id"]) == shards.read_unit(shards.units[3], ["id"])


def test_open__refuses_what_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same `brnf prepare` command again"):
        Shards.open(str(tmp_path / "nowhere"))
    write_shards(tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks part-00001\.parquet"):
        Shards.open(str(tmp_path))
    storage.write_json(str(tmp_path / MANIFEST), {"format_version": 99})
    with pytest.raises(ValueError, match="format 99"):
        Shards.open(str(tmp_path))


UNIT_ROWS = [8, 8, 8, 5, 8, 8, 3, 8, 8, 1]


def plan_of(epoch: int = 0, batch_size: int = 6, window_units: int = 3, random_seed: int = 0) -> np.ndarray:
    """A plan over units of several sizes."""
    return epoch_plan(
        UNIT_ROWS, random_seed=random_seed, epoch=epoch, batch_size=batch_size, window_units=window_units
    )


@settings(max_examples=60, deadline=None)
@given(
    unit_rows=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    batch_size=st.integers(1, 12), window_units=st.integers(1, 8), epoch=st.integers(0, 5),
)  # fmt: skip
def test_plan__uses_each_row_at_most_once_and_all_but_the_last(
    unit_rows: list[int], batch_size: int, window_units: int, epoch: int
) -> None:
    if sum(unit_rows) < batch_size:
        return
    plan = epoch_plan(unit_rows, random_seed=1, epoch=epoch, batch_size=batch_size, window_units=window_units)
    assert plan.dtype == np.int32 and plan.shape == (sum(unit_rows) // batch_size, batch_size, 2)
    rows = {(int(unit), int(row)) for unit, row in plan.reshape(-1, 2)}
    assert len(rows) == plan.shape[0] * batch_size
    assert all(0 <= row < unit_rows[unit] for unit, row in rows)


def test_plan__is_a_function_of_random_seed_and_epoch() -> None:
    np.testing.assert_array_equal(plan_of(epoch=3), plan_of(epoch=3))
    plans = {plan_of(epoch=epoch, random_seed=seed).tobytes() for epoch in range(4) for seed in range(4)}
    assert len(plans) == 16


def test_plan__leaves_other_rows_out_each_epoch() -> None:
    every_row = {(unit, row) for unit, rows in enumerate(UNIT_ROWS) for row in range(rows)}
    left_out = [every_row - {tuple(row) for row in plan_of(epoch=e).reshape(-1, 2).tolist()} for e in range(5)]
    assert all(len(rows) == sum(UNIT_ROWS) % 6 for rows in left_out)
    assert len(set().union(*left_out)) > len(left_out[0])


def test_plan__draws_a_batch_from_one_window_or_two() -> None:
    plan = epoch_plan([8] * 30, random_seed=0, epoch=0, batch_size=12, window_units=3)
    windows = [set(batch[:, 0].tolist()) for batch in plan]
    for first in range(0, len(plan), 2):  # a window of 24 rows is two batches
        assert len(windows[first] | windows[first + 1]) == 3
    assert not np.array_equal(np.unique(plan[:10, :, 0]), np.arange(15))  # units are permuted too


def test_plan__mixes_rows_of_a_window() -> None:
    plan = epoch_plan([32] * 16, random_seed=0, epoch=0, batch_size=16, window_units=16)
    units_per_batch = [len(np.unique(batch[:, 0])) for batch in plan]
    assert np.mean(units_per_batch) > 8  # 10.3 expected of 16 draws from 16 units


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_rank_slices__part_the_same_batches_whatever_the_world_size(world_size: int) -> None:
    plan = plan_of()
    slices = [rank_slice(plan, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(slices, axis=1), plan)
    for batch in plan:
        assert batch.tolist() == sorted(batch.tolist())  # so a slice touches neighbouring units


def test_plan__refuses_impossible_sizes() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 66, but there are only 65 images"):
        plan_of(batch_size=66)
    with pytest.raises(ValueError, match="batch_size is 6: give a multiple of the 4 workers"):
        rank_slice(plan_of(), 0, 4)
