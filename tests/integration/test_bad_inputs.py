"""Own images of every bad kind through the command: the run ends, the manifest names them, the last lines count."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brnf.cli import main
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.data.shards import Shards
from brnf.data.transforms import decode_image

pytestmark = pytest.mark.ray

RED = (200, 30, 40)
REFUSED = {
    "truncated.jpg": "truncated",
    "unknown.jpg": "zebra",
    "untagged.jpg": "no tag",
    "twin.png": "duplicate",
    "nothing.jpg": "not an image",
    "absent.jpg": "missing",
}


def jpeg(mode: str = "RGB", orientation: int = 1) -> bytes:
    """A red picture, 40 x 30, as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), RED).convert(mode).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    files = {
        "good.jpg": jpeg(),
        "grey.jpg": jpeg("L"),
        "cmyk.jpg": jpeg("CMYK"),
        "turned.jpg": jpeg(orientation=6),
        "truncated.jpg": jpeg()[:-80],
        "unknown.jpg": jpeg(),
        "untagged.jpg": jpeg(),
        "twin.jpg": jpeg(),
        "twin.png": jpeg(),
        "nothing.jpg": b"no image at all",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tags = {name: "cat" for name in [*files, "absent.jpg"]} | {"unknown.jpg": "zebra", "untagged.jpg": ""}
    (tmp_path / "tags.csv").write_text("file,tags\n" + "".join(f"{name},{tag}\n" for name, tag in tags.items()))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return folder


def test_prepare_folder__refuses_by_name_and_counts(
    images: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    command = ["prepare", "folder", "--images", str(images), "--tags", str(tmp_path / "tags.csv")]
    main([*command, "--classes", str(tmp_path / "classes.txt"), "--shards", out])
    quarantine = {Path(row["file"]).name: row["reason"] for row in storage.read_json(f"{out}/{MANIFEST}")["quarantine"]}
    assert quarantine.keys() == REFUSED.keys()
    for name, word in REFUSED.items():
        assert word in quarantine[name], quarantine[name]
    assert f"refused {len(REFUSED)} " in capsys.readouterr().out.splitlines()[-1]

    shards = Shards.open(out)
    rows = [row for unit in shards.units for row in shards.read_unit(unit, ["id", "image", "orientation"]).to_pylist()]
    pictures = {row["id"]: decode_image(row["image"], row["orientation"]) for row in rows}
    assert pictures.keys() == {"good", "grey", "cmyk", "turned", "twin"}
    assert pictures["turned"].shape == (40, 30, 3)
    for name in ("good", "cmyk", "turned"):
        assert np.abs(pictures[name].mean(axis=(0, 1)) - RED).max() < 8, name
    assert np.ptp(pictures["grey"].mean(axis=(0, 1))) == 0
