"""Images of a unit read together: by size, each with its place, and none pays for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import pytest
import torch
from tiny import write_random_run

from brnf.config import ComputeConfig, MasksConfig, ReadOutConfig
from brnf.distributed.label import MaskWriter
from brnf.distributed.read_out import ReadOutJob
from brnf.distributed.readers import UnitReader
from brnf.distributed.runs import load_run
from brnf.inference.multiscale import read_out
from brnf.training.device import autocast

CLASSES = ("background", "boat", "cow", "train")
SIZES = ((60, 80), (80, 60), (60, 80), (60, 80), (48, 48), (60, 80), (80, 60))
BROKEN = 3
READ_OUT = ReadOutConfig(scales=(1.0, 0.5))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    rng, made = np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES):
        encoded = cv2.imencode(".png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))[1].tobytes()
        content = encoded[: len(encoded) // 2] if number == BROKEN else encoded
        row = {"id": str(number), "image": content, "orientation": 1, "height": height, "width": width}
        made.append(row | {"image_labels": [1 + number % 3, 3]})
    return made


def reader(run: Path, label_batch: int | None, config: ReadOutConfig = READ_OUT) -> UnitReader:
    write_random_run(str(run), CLASSES)
    compute, writer = ComputeConfig(device="cpu", label_batch=label_batch), MaskWriter("", MasksConfig())
    job = ReadOutJob(run=str(run), shards=cast(Any, None), configs=(config,), compute=compute, writer=writer)
    return UnitReader(job, "cpu")


def test_batches__are_of_one_size_and_no_larger_than_asked_for(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert list(reader(tmp_path, 3).batches(rows)) == [[0, 2, 3], [5], [1, 6], [4]]
    assert list(reader(tmp_path, None).batches(rows)) == [[0], [2], [3], [5], [1], [6], [4]]


def test_read__together_gives_what_one_at_a_time_gives(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """One file of those read together is truncated."""
    together, alone = (dict(reader(tmp_path, batch).read(rows)) for batch in (3, 1))
    assert sorted(together) == sorted(alone) == list(range(len(rows)))
    for index, row in enumerate(rows):
        found, expected = together[index], alone[index]
        assert found.row == expected.row == row and found.error == expected.error
        if index == BROKEN:
            assert "truncated" in str(found.error) and found.image is None
            continue
        [scores], [lonely] = found.readings, expected.readings
        assert scores.keys == lonely.keys == (0, *sorted(set(row["image_labels"])))
        assert scores.maps.shape[1:] == (row["height"], row["width"])
        torch.testing.assert_close(scores.maps, lonely.maps, rtol=0, atol=1e-5)


def test_read__refuses_images_that_are_too_large_each_alone(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = dict(reader(tmp_path, 3, ReadOutConfig(scales=(40.0,))).read([rows[0], rows[2]]))
    assert len(found) == 2 and all("long_side" in str(read.error) for read in found.values())


@pytest.mark.parametrize("id", ["../away", "a/b", "", ".hidden", "x" * 300, "line\nbreak"])
def test_read__refuses_an_id_that_cannot_name_a_file(tmp_path: Path, rows: list[dict[str, Any]], id: str) -> None:
    """Shards may come from elsewhere."""
    [(_, found)] = reader(tmp_path, 1).read([{**rows[0], "id": id}])
    assert found.image is None and "id" in str(found.error)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_read__folds_batch_norm_only_where_labels_stay(
    tmp_path: Path, rows: list[dict[str, Any]], precision: Literal["float32", "bfloat16"]
) -> None:
    """In bfloat16 folding moves labels; there scores are those of the network as it was trained, to the bit."""
    write_random_run(str(tmp_path), CLASSES)
    compute = ComputeConfig(device="cpu", precision=precision)
    writer = MaskWriter("", MasksConfig())
    job = ReadOutJob(run=str(tmp_path), shards=cast(Any, None), configs=(READ_OUT,), compute=compute, writer=writer)
    [(_, found)] = UnitReader(job, "cpu").read(rows[:1])
    model, config, _ = load_run(str(tmp_path))
    model = model.to(memory_format=torch.channels_last)
    assert found.image is not None
    with autocast(torch.device("cpu"), precision):
        expected = read_out(
            model, found.image, rows[0]["image_labels"], READ_OUT, stride=config.backbone.output_stride
        )
    tolerance = 0.0 if precision == "bfloat16" else 1e-4
    torch.testing.assert_close(found.readings[0].maps, expected.maps, rtol=0, atol=tolerance)
