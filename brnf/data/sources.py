"""Which source a configuration means."""

from __future__ import annotations

from brnf.config import DataConfig
from brnf.data.coco import CocoTree
from brnf.data.folder import TaggedFolder
from brnf.data.records import Source
from brnf.data.voc import VocTree


def open_source(data: DataConfig, *, root: str, split: str) -> Source:
    """Open the tree under `root`.

    Args:
        data: Kind of the tree; for own data also the CSV of tags and the list of classes.
        root: VOCdevkit/VOC2012, a COCO tree, or the folder of images.
        split: Split of a VOC or COCO tree. Own data is one split, whatever its name.

    Raises:
        ValueError: If the tree, the split or a list is missing or unreadable.
    """
    if data.kind == "voc":
        return VocTree.open(root, split)
    if data.kind == "coco":
        return CocoTree.open(root, split)
    if data.tags is None or data.classes is None:
        missing = "data.tags (--tags FILE.csv)" if data.tags is None else "data.classes (--classes classes.txt)"
        raise ValueError(f"{missing} is not given: own images need a CSV of tags and a list of classes")
    return TaggedFolder.open(root, data.tags, data.classes)


def inputs_fingerprint(data: DataConfig, *, root: str, split: str) -> str:
    """Sixteen hex digits that change with what `prepare` would read: lists, and names and sizes of files.

    Raises:
        ValueError: As `open_source`.
    """
    return open_source(data, root=root, split=split).fingerprint()
