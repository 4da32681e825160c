"""Own data: a folder, a CSV of tags, a list of classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brnf.data.folder import TaggedFolder, exif_orientation
from brnf.data.transforms import decode_image


def save_image(path: Path, mode: str = "RGB", orientation: int | None = None) -> None:
    """A 24 x 16 image whose left half is bright, optionally with an EXIF orientation."""
    pixels = np.full((16, 24, 3), 40, np.uint8)
    pixels[:, :12] = 220
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)


def make_folder(tmp_path: Path, rows: str, header: str = "file,tags") -> TaggedFolder:
    """A folder whose CSV has these rows."""
    (tmp_path / "tags.csv").write_text(f"{header}\n{rows}")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "images").mkdir(exist_ok=True)
    return TaggedFolder.open(*(str(tmp_path / name) for name in ("images", "tags.csv", "classes.txt")))


def test_record__has_the_classes_of_its_tags(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    save_image(tmp_path / "images/sub/my b.PNG")
    folder = make_folder(tmp_path, 'a.jpg,"dog; cat;"\n\n./sub/my b.PNG,dog\n')
    entries, refused = folder.list_entries()
    records = {entry.id: folder.read_record(entry)[0] for entry in entries}
    assert refused == []
    assert {id: record.image_labels for id, record in records.items()} == {"a": (1, 2), "my b": (2,)}
    assert (records["a"].mask, records["a"].width, records["a"].height) == (None, 24, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation__is_recorded_and_size_is_what_one_sees(tmp_path: Path, orientation: int) -> None:
    save_image(tmp_path / "images/a.jpg", orientation=orientation)
    folder = make_folder(tmp_path, "a.jpg,cat\n")
    record, _ = folder.read_record(folder.list_entries()[0][0])
    assert record.orientation == orientation
    assert (record.width, record.height) == ((24, 16) if orientation <= 4 else (16, 24))
    upright = decode_image(record.image, record.orientation)
    bright_half = {1: upright[:, :12], 3: upright[:, 12:], 6: upright[:12], 8: upright[12:]}.get(orientation)
    assert bright_half is None or bright_half.mean() > 200


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff", b"text"])
def test_orientation__that_makes_no_sense_is_none(content: bytes) -> None:
    assert exif_orientation(content) == 1
    assert exif_orientation(_with_orientation(77)) == 1


def _with_orientation(value: int) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = value
    Image.new("RGB", (8, 8)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_modes__other_than_rgb_are_accepted(tmp_path: Path, mode: str) -> None:
    save_image(tmp_path / "images/a.jpg", mode)
    folder = make_folder(tmp_path, "a.jpg,cat\n")
    record, _ = folder.read_record(folder.list_entries()[0][0])
    assert decode_image(record.image)[:, :10].mean() > 200 > decode_image(record.image)[:, 14:].mean()


def test_refusals__name_the_image_and_the_reason(tmp_path: Path) -> None:
    for name in ("sound.jpg", "unicorn.jpg", "untagged.jpg", "three.jpg", "cut.jpg", "forgotten.jpg", "sub/sound.png"):
        save_image(tmp_path / "images" / name)
    (tmp_path / "images/cut.jpg").write_bytes((tmp_path / "images/cut.jpg").read_bytes()[:200])
    (tmp_path / "images/notes.txt").write_text("not an image, and nobody says so")
    folder = make_folder(
        tmp_path,
        "sound.jpg,cat\nunicorn.jpg,cat;unicorn\nuntagged.jpg,\nthree.jpg,cat,dog\ncut.jpg,cat\ngone.jpg,cat\n"
        "sub/sound.png,cat\n../secret.jpg,cat\n/etc/abs.jpg,cat\n",
    )
    entries, refused = folder.list_entries()
    reasons = {refusal.file: refusal.reason for refusal in refused}
    for entry in entries:
        try:
            folder.read_record(entry)
        except ValueError as error:
            reasons[entry.file] = str(error)
    expected = {
        "unicorn.jpg": "unknown tag 'unicorn'", "untagged.jpg": "no tags",
        "three.jpg": "line 5 of the CSV has 3 columns",
        "cut.jpg": "truncated", "gone.jpg": "gone.jpg is missing",
        "sub/sound.png": "duplicate id: sound.jpg came first",
        "../secret.jpg": "below the images' directory", "/etc/abs.jpg": "below the images' directory",
        "forgotten.jpg": "no row of the CSV names it",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert {file: reason for file, reason in expected.items() if reason not in reasons[file]} == {}


def test_open__wants_header_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"begins with 'name,label'; give two columns with the header `file,tags`"):
        make_folder(tmp_path, "a.jpg,cat\n", header="name,label")
    folder = make_folder(tmp_path, "a.jpg,cat\n")
    with pytest.raises(ValueError, match=r"nowhere\.csv cannot be read"):
        TaggedFolder.open(folder.images, str(tmp_path / "nowhere.csv"), str(tmp_path / "classes.txt"))
    with pytest.raises(ValueError, match=r"--images .*missing does not exist"):
        TaggedFolder.open(str(tmp_path / "missing"), folder.tags, str(tmp_path / "classes.txt"))
    (tmp_path / "tags.csv").write_bytes(b"file,tags\n\xff\xfe,cat\n")
    with pytest.raises(ValueError, match="in UTF-8"):
        TaggedFolder.open(folder.images, folder.tags, str(tmp_path / "classes.txt"))


def test_fingerprint__changes_with_tags_classes_and_images(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    seen = {make_folder(tmp_path, "a.jpg,cat\n").fingerprint(), make_folder(tmp_path, "a.jpg,dog\n").fingerprint()}
    save_image(tmp_path / "images/b.jpg")
    seen.add(make_folder(tmp_path, "a.jpg,dog\n").fingerprint())
    assert len(seen) == 3
    assert make_folder(tmp_path, "a.jpg,dog\n").fingerprint() in seen
