"""A tree in the layout of PASCAL VOC: images, split lists, masks, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np

from brnf.data import storage
from brnf.data.records import (
    BACKGROUND_NAME,
    Entry,
    Record,
    Refusal,
    admit,
    file_sizes,
    hash_values,
    mask_classes,
    read_class_names,
    read_input,
    read_mask,
    read_text,
)
from brnf.data.restricted_pickle import load_npy
from brnf.data.transforms import decode_image

VOC_CLASSES = (
    BACKGROUND_NAME, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

IMAGES, ANNOTATIONS, SPLITS = "JPEGImages", "Annotations", "ImageSets/Segmentation"
MASKS, MASKS_AUGMENTED, CONTEXTS = "SegmentationClass", "SegmentationClassAug", "SegmentationContext"
CLASS_LIST, LABEL_TABLE = "classes.txt", "cls_labels.npy"


@dataclass(frozen=True)
class VocTree:
    """One split of a VOC tree; `VocTree.open` makes it.

    The masks of train_aug (VOC and SBD) come from SegmentationClassAug, those of any other split from
    SegmentationClass. `classes.txt` in the root replaces the names of VOC, one foreground class a line.
    """

    root: str
    split: str
    class_names: tuple[str, ...]
    masks: str | None
    """Folder of the masks; None if the tree has none for this split."""
    contexts: str | None
    """Folder of the context maps (the built-in sample has them), or None."""
    label_table: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Classes from cls_labels.npy, of the images that have no annotation."""
    kind: str = "voc"

    @classmethod
    def open(cls, root: str, split: str) -> VocTree:
        """Look at what the tree has, without reading images.

        Raises:
            ValueError: If there is no such tree or split, or a list in it cannot be read.
        """
        root = storage.absolute(root)
        if not storage.exists(storage.join(root, IMAGES)):
            raise ValueError(
                f"--root {root} has no folder {IMAGES}; give the directory that holds {IMAGES} and {SPLITS}, "
                "VOCdevkit/VOC2012 for instance"
            )
        names = VOC_CLASSES
        if storage.exists(storage.join(root, CLASS_LIST)):
            names = read_class_names(storage.join(root, CLASS_LIST))
        masks = MASKS_AUGMENTED if split == "train_aug" else MASKS
        annotated = set(storage.list_names(storage.join(root, ANNOTATIONS)))
        bare = {id for id in split_ids(root, split) if f"{id}.xml" not in annotated}
        return cls(
            root=root,
            split=split,
            class_names=names,
            masks=masks if storage.exists(storage.join(root, masks)) else None,
            contexts=CONTEXTS if storage.exists(storage.join(root, CONTEXTS)) else None,
            label_table=_read_label_table(root, bare, len(names)) if bare else {},
        )

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        """Images of the split in hash order of their ids, and the ids that are refused."""
        return admit(Entry(id, f"{IMAGES}/{id}.jpg") for id in split_ids(self.root, self.split))

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        """Read and check one image, its mask and its image-level labels.

        Returns:
            The record, and where its labels come from: "xml", "cls_labels.npy" or "masks".

        Raises:
            ValueError: With the reason, if anything about it is wrong.
        """
        image = read_input(self.root, entry.file)
        height, width = decode_image(image).shape[:2]  # EXIF is not looked at: the masks of VOC ignore it too
        mask, context = (
            read_mask(self.root, f"{folder}/{entry.id}.png", (height, width), len(self.class_names)) if folder else None
            for folder in (self.masks, self.contexts)
        )
        labels, label_source = self._image_labels(entry.id, mask)
        if not labels:
            raise ValueError(f"the image has no tags ({label_source} names none)")
        return Record(entry.id, image, labels, mask, context, 1, width, height), label_source

    def fingerprint(self) -> str:
        """Hash of the split list, the classes, cls_labels.npy, and the names and sizes of the split's files."""
        ids = split_ids(self.root, self.split)
        wanted = set(ids)
        sizes = {
            folder: [
                (name, size)
                for name, size in file_sizes(storage.join(self.root, folder)).items()
                if PurePosixPath(name).stem in wanted
            ]
            for folder in (IMAGES, ANNOTATIONS, self.masks, self.contexts)
            if folder is not None
        }
        return hash_values(self.kind, self.split, ids, self.class_names, sizes, dict(self.label_table))

    def _image_labels(self, id: str, mask: bytes | None) -> tuple[tuple[int, ...], str]:
        """Classes of an image and where they come from: its annotation, else cls_labels.npy, else its mask."""
        try:
            annotation = storage.read_bytes(storage.join(self.root, ANNOTATIONS, f"{id}.xml"))
        except FileNotFoundError:
            annotation = None
        if annotation is not None:
            return _annotated_labels(annotation, id, self.class_names), "xml"
        if id in self.label_table:
            return self.label_table[id], LABEL_TABLE
        if mask is None:
            raise ValueError(f"the image has no tags: no {ANNOTATIONS}/{id}.xml, not in {LABEL_TABLE}, no mask")
        return mask_classes(mask), "masks"


def split_ids(root: str, split: str) -> list[str]:
    """Ids of a split as its list gives them, duplicates and all.

    Raises:
        ValueError: If there is no such split; names those there are.
    """
    path = storage.join(root, SPLITS, f"{split}.txt")
    names = [name.removesuffix(".txt") for name in storage.list_names(storage.join(root, SPLITS))]
    if split not in names:
        raise ValueError(f"--split {split!r}: no {path}; splits there: {', '.join(names) or 'none'}")
    return [line.strip() for line in read_text(path, "a list of ids, one a line").splitlines() if line.strip()]


def _annotated_labels(annotation: bytes, id: str, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Classes of the objects in an annotation, the difficult ones included, as WSSS code does."""
    file = f"{ANNOTATIONS}/{id}.xml"
    try:
        root = ElementTree.fromstring(annotation)
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is not valid XML ({error})") from error
    names = {(found.findtext("name") or "").strip() for found in root.iter("object")}
    unknown = sorted(names - set(class_names[1:]))
    if unknown:
        raise ValueError(f"{file} has the unknown tag {unknown[0]!r}")
    return tuple(sorted(class_names.index(name) for name in names))


def _read_label_table(root: str, ids: set[str], num_classes: int) -> dict[str, tuple[int, ...]]:
    """Classes by id from cls_labels.npy (id -> float32 (num_classes - 1,), multi-hot), as far as `ids` go."""
    path = storage.join(root, LABEL_TABLE)
    if not storage.exists(path):
        return {}
    wanted = f"give a dict of id -> {num_classes - 1} numbers, saved by np.save, or take the file away"
    try:
        table = load_npy(storage.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {wanted}") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"{path} holds no dict; {wanted}")
    rows = {id: np.asarray(table[id]) for id in sorted(ids) if id in table}
    for id, row in rows.items():
        if row.shape != (num_classes - 1,) or row.dtype.kind not in "biuf":
            raise ValueError(f"{path}: the entry of {id!r} has shape {row.shape} and type {row.dtype}; {wanted}")
    return {id: tuple(int(c) for c in np.flatnonzero(row > 0) + 1) for id, row in rows.items()}
