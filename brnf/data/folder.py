"""Own data: a folder of images, a CSV of tags, a list of classes. There are no masks."""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from brnf.data import storage
from brnf.data.records import (
    Entry,
    Record,
    Refusal,
    admit,
    file_sizes,
    hash_values,
    leaves_folder,
    read_class_names,
    read_input,
    read_text,
)
from brnf.data.transforms import decode_image

HEADER = ["file", "tags"]
CSV_FORM = "two columns with the header `file,tags`, tags of one image separated by ';' (photos/a.jpg,cat;dog)"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class TaggedFolder:
    """Images below one directory and the CSV that tags them; `TaggedFolder.open` makes it.

    The id of an image is its file name without folder and ending.
    """

    images: str
    tags: str
    class_names: tuple[str, ...]
    kind: str = "folder"
    masks: str | None = None
    """Own data has none."""

    @classmethod
    def open(cls, images: str, tags: str, classes: str) -> TaggedFolder:
        """Check the lists that a run cannot start without.

        Args:
            images: Directory (or URI) of the images.
            tags: CSV in the form of CSV_FORM.
            classes: Text file, one class name a line.

        Raises:
            ValueError: If one of them is missing or not in that form.
        """
        images, tags = storage.absolute(images), storage.absolute(tags)
        if not storage.exists(images):
            raise ValueError(f"--images {images} does not exist; give the directory that the file names start from")
        _read_rows(tags)
        return cls(images, tags, read_class_names(storage.absolute(classes)))

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        """Tagged images in hash order of their ids; refused: bad rows, duplicates, images that no row names."""
        entries: list[Entry] = []
        refused: list[Refusal] = []
        for line, row in _read_rows(self.tags):
            file = str(PurePosixPath(row[0].strip()))
            reason = _bad_row(line, row)
            if reason is None:
                entries.append(Entry(PurePosixPath(file).stem, file, row[1]))
            else:
                refused.append(Refusal(PurePosixPath(file).stem, row[0], reason))
        named = {entry.file for entry in entries} | {refusal.file for refusal in refused}
        forgotten = [
            Refusal(PurePosixPath(file).stem, file, "the image has no tags: no row of the CSV names it")
            for file in self._image_sizes()
            if file not in named
        ]
        kept, unusable = admit(entries)
        return kept, refused + unusable + forgotten

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        """Read and check one image and its tags; the EXIF orientation is recorded, to be applied after decoding.

        Raises:
            ValueError: With the reason, if anything about it is wrong.
        """
        names = {tag.strip() for tag in entry.tags.split(";")} - {""}
        if not names:
            raise ValueError("the image has no tags: its field in the CSV is empty")
        unknown = sorted(names - set(self.class_names[1:]))
        if unknown:
            raise ValueError(f"unknown tag {unknown[0]!r}; it is not in the list of classes")
        labels = tuple(sorted(self.class_names.index(name) for name in names))
        image = read_input(self.images, entry.file)
        orientation = exif_orientation(image)
        height, width = decode_image(image, orientation).shape[:2]
        return Record(entry.id, image, labels, None, None, orientation, width, height), "tags"

    def fingerprint(self) -> str:
        """Hash of the CSV, the classes, and the names and sizes of the images."""
        table = read_text(self.tags, CSV_FORM)
        return hash_values(self.kind, table, self.class_names, self._image_sizes())

    def _image_sizes(self) -> dict[str, int]:
        sizes = file_sizes(self.images)
        return {file: size for file, size in sizes.items() if file.lower().endswith(IMAGE_ENDINGS)}


def exif_orientation(encoded: bytes) -> int:
    """EXIF orientation of an encoded image, 1 to 8; 1 (as stored) where there is none or it makes no sense."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as file:
            value = file.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # cameras write EXIF that breaks parsers in every way; decode_image judges the picture itself
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _read_rows(path: str) -> list[tuple[int, list[str]]]:
    """Rows of the CSV behind its header, each with its line number.

    Raises:
        ValueError: If it is not a CSV with that header.
    """
    reader = csv.reader(io.StringIO(read_text(path, f"a CSV of {CSV_FORM}"), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error}); give {CSV_FORM}") from error
    if header != HEADER:
        raise ValueError(f"{path} begins with {','.join(header)!r}; give {CSV_FORM}")
    return rows


def _bad_row(line: int, row: list[str]) -> str | None:
    """Why a row of the CSV cannot be used; None if it can."""
    if len(row) != len(HEADER):
        return f"line {line} of the CSV has {len(row)} columns; give {CSV_FORM}"
    if leaves_folder(row[0].strip()):
        return f"line {line} of the CSV: the file has to lie below the images' directory, with '/' between folders"
    return None
