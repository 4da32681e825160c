"""What every data set becomes on its way into shards: entries that are listed, records that are read, refusals.

voc.py, coco.py and folder.py are sources: they list a tree cheaply on the driver, and read one image in a task.
Whatever is wrong with one image is a ValueError whose text becomes the reason of a refusal in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
from pyarrow import fs

from brnf.data import storage
from brnf.data.schema import BACKGROUND, IGNORE_INDEX
from brnf.data.transforms import decode_mask

BACKGROUND_NAME = "background"
LONGEST_ID = 150
"""Bytes: an id becomes a file name, which may have 255 with its ending and a mark for partial files."""


@dataclass(frozen=True)
class Entry:
    """An image that a source lists."""

    id: str
    file: str
    """Path below the source's root."""
    tags: str = ""
    """Tags as the list gives them; empty where they lie elsewhere."""
    objects: str = ""
    """Outlines of the image's objects as JSON, where the list has them."""


@dataclass(frozen=True)
class Refusal:
    """An image that will not be in the shards, for the manifest's `quarantine`."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True)
class Record:
    """A row of the shards (schema.SHARD)."""

    id: str
    image: bytes
    image_labels: tuple[int, ...]
    mask: bytes | None
    context: bytes | None
    orientation: int
    width: int
    height: int


class Source(Protocol):
    """A tree on disk that can be listed and read. Picklable: tasks get a copy."""

    @property
    def kind(self) -> str:
        """Which data.kind it is."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, background first."""
        ...

    @property
    def masks(self) -> str | None:
        """Folder that the masks come from; None if the split has none."""
        ...

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        """Images in hash order of their ids, and those that are refused without opening them."""
        ...

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        """One image with all that belongs to it, and where its image-level labels come from.

        Raises:
            ValueError: With the reason, if anything about it is wrong.
        """
        ...

    def fingerprint(self) -> str:
        """Hash of the lists that make the split, and of the names and sizes of its files."""
        ...


def admit(entries: Iterable[Entry]) -> tuple[list[Entry], list[Refusal]]:
    """Keep entries whose ids are usable and new, in the order of the hashes of their ids.

    That order has nothing to do with content, so any stretch of rows is a random sample of the data set.
    """
    kept: dict[str, Entry] = {}
    refused: list[Refusal] = []
    for entry in entries:
        reason = unusable_id(entry.id)
        if reason is None and entry.id in kept:
            reason = f"duplicate id: {kept[entry.id].file} came first"
        if reason is None:
            kept[entry.id] = entry
        else:
            refused.append(Refusal(entry.id, entry.file, reason))
    return sorted(kept.values(), key=lambda entry: hashlib.sha256(entry.id.encode()).digest()), refused


def unusable_id(id: str) -> str | None:
    """Why an id cannot name files (labels are written as {id}.png); None if it can."""
    if not id or id.startswith("."):
        return "the id is empty or begins with a dot"
    if "/" in id or "\\" in id or not id.isprintable():
        return "the id holds a path separator or a control character"
    if len(id.encode()) > LONGEST_ID:
        return f"the id has {len(id.encode())} bytes; {LONGEST_ID} is the most"
    return None


def leaves_folder(file: str) -> bool:
    """Whether a path that a list gives points out of the folder it should lie in."""
    path = PurePosixPath(file)
    return path.is_absolute() or ".." in path.parts or "\\" in file or "://" in file


def read_class_names(path: str) -> tuple[str, ...]:
    """Read a list of foreground classes, one a line, and put the background before them.

    Raises:
        ValueError: If the file is missing, empty, repeats a name, names the background or more than 254 classes.
    """
    text = read_text(path, "a text file with one class name a line")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise ValueError(f"{path} names no class; write one a line")
    if repeated or BACKGROUND_NAME in names:
        wrong = ", ".join(repeated) or f"{BACKGROUND_NAME}, which is always class {BACKGROUND}"
        raise ValueError(f"{path} has to name each foreground class once; take out {wrong}")
    if len(names) >= IGNORE_INDEX:
        raise ValueError(f"{path} names {len(names)} classes; masks of 8 bits have room for {IGNORE_INDEX - 1}")
    return (BACKGROUND_NAME, *names)


def read_text(path: str, what: str) -> str:
    """Read a list that a run cannot start without.

    Raises:
        ValueError: If it is missing or no UTF-8; says that `what` is wanted.
    """
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give {what}, in UTF-8") from error


def read_input(root: str, file: str) -> bytes:
    """Read one file of an image.

    Raises:
        ValueError: If it is missing or not to be read. Failing disks and networks stay OSErrors, to be tried again.
    """
    try:
        return storage.read_bytes(storage.join(root, file))
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except PermissionError as error:
        raise ValueError(f"{file} may not be read (permissions)") from error


def read_mask(root: str, file: str, shape: tuple[int, int], num_classes: int) -> bytes:
    """Read a mask or context map and check that it fits its image and holds known classes only.

    Args:
        root: Of the tree.
        file: Path below it.
        shape: Height and width of the image.
        num_classes: C, background included.

    Returns:
        The encoded file.

    Raises:
        ValueError: If it is missing, damaged, of another size, or holds an unknown class.
    """
    encoded = read_input(root, file)
    try:
        decoded = decode_mask(encoded)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if decoded.shape != shape:
        (height, width), (image_height, image_width) = decoded.shape, shape
        raise ValueError(f"{file} is {width} x {height} pixels, its image {image_width} x {image_height}")
    unknown = [int(value) for value in np.unique(decoded) if value >= num_classes and value != IGNORE_INDEX]
    if unknown:
        raise ValueError(f"{file} holds class {unknown[0]}; there are {num_classes} with the background")
    return encoded


def mask_classes(encoded: bytes) -> tuple[int, ...]:
    """Foreground classes in an encoded mask, ascending."""
    return tuple(int(value) for value in np.unique(decode_mask(encoded)) if BACKGROUND < value < IGNORE_INDEX)


def file_sizes(directory: str) -> dict[str, int]:
    """Bytes of every file below a directory, by its path inside; empty if there is no such directory."""
    filesystem, inner = storage.open_location(directory)
    selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
    start = len(inner.rstrip("/")) + 1
    infos = filesystem.get_file_info(selector)
    return {info.path[start:]: info.size for info in sorted(infos, key=lambda i: i.path) if info.is_file}


def hash_values(*values: Any) -> str:
    """Sixteen hex digits of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
