"""A COCO tree: images with an instances JSON, or images with masks in the layout of VOC.

Either form is enough. Where both are there, the JSON counts: it has every object, also those that a mask hides.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from brnf.data import storage
from brnf.data.records import (
    BACKGROUND_NAME,
    Entry,
    Record,
    Refusal,
    admit,
    file_sizes,
    hash_values,
    leaves_folder,
    mask_classes,
    read_input,
    read_mask,
    read_text,
)
from brnf.data.schema import IGNORE_INDEX
from brnf.data.transforms import decode_image

COCO_CLASSES = (
    BACKGROUND_NAME, "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""By contiguous index: COCO's 80 categories by ascending id, which has gaps up to 90."""

IMAGES, MASKS, ANNOTATIONS = "JPEGImages", "SegmentationClass", "annotations"
IMAGE_ENDING = ".jpg"


@dataclass(frozen=True)
class CocoTree:
    """One split of a COCO tree; `CocoTree.open` makes it.

    Images lie in JPEGImages/{split} or {split}, as COCO's own archives unpack; the JSON is
    annotations/instances_{split}.json, the masks are SegmentationClass/{split}/*.png with 0..80 and 255.
    """

    root: str
    split: str
    images: str
    """Folder of the images."""
    annotations: str | None
    """The instances JSON, if there is one."""
    masks: str
    """What masks come from: the JSON or the folder of masks."""
    class_names: tuple[str, ...]
    kind: str = "coco"

    @classmethod
    def open(cls, root: str, split: str) -> CocoTree:
        """Look at what the tree has, without reading images.

        Raises:
            ValueError: If there is no such tree or split, or it has neither JSON nor masks.
        """
        root = storage.absolute(root)
        images = next((at for at in (f"{IMAGES}/{split}", split) if storage.exists(storage.join(root, at))), None)
        if images is None:
            raise ValueError(
                f"--split {split!r}: {root} has neither {IMAGES}/{split} nor {split}; give a directory that holds the "
                "images of the split (train2014, val2014) in one of them"
            )
        annotations, masks = f"{ANNOTATIONS}/instances_{split}.json", f"{MASKS}/{split}"
        if storage.exists(storage.join(root, annotations)):
            names = tuple(_class_names(_read_instances(root, annotations)["categories"]))
            return cls(root, split, images, annotations, annotations, names)
        if storage.exists(storage.join(root, masks)):
            return cls(root, split, images, None, masks, COCO_CLASSES)
        raise ValueError(f"--root {root} has neither {annotations} nor {masks}; image-level labels come from either")

    def list_entries(self) -> tuple[list[Entry], list[Refusal]]:
        """Images of the split in hash order of their ids, and those that are refused."""
        if self.annotations is None:
            return admit(Entry(PurePosixPath(name).stem, f"{self.images}/{name}") for name in self._image_sizes())
        listed = _list_objects(_read_instances(self.root, self.annotations), self.annotations)
        inside = [
            Entry(PurePosixPath(name).stem, f"{self.images}/{name}", objects=objects)
            for name, objects in listed
            if not leaves_folder(name)
        ]
        kept, refused = admit(inside)
        outside = [
            Refusal(PurePosixPath(name).stem, name, f"{self.annotations}: the file name leads out of {self.images}")
            for name, _ in listed
            if leaves_folder(name)
        ]
        return kept, refused + outside

    def read_record(self, entry: Entry) -> tuple[Record, str]:
        """Read and check one image, its mask and its image-level labels.

        Returns:
            The record, and where its labels come from: "json" or "masks".

        Raises:
            ValueError: With the reason, if anything about it is wrong.
        """
        image = read_input(self.root, entry.file)
        height, width = decode_image(image).shape[:2]  # EXIF is not looked at: COCO's outlines ignore it too
        if self.annotations is None:
            mask = read_mask(self.root, f"{self.masks}/{entry.id}.png", (height, width), len(self.class_names))
            labels, source = mask_classes(mask), "masks"
        else:
            objects = json.loads(entry.objects)
            mask = cv2.imencode(".png", draw_objects(objects, height, width))[1].tobytes()
            labels, source = tuple(sorted({item["class"] for item in objects})), "json"
        if not labels:
            raise ValueError(f"the image has no tags ({source} names none)")
        return Record(entry.id, image, labels, mask, None, 1, width, height), source

    def fingerprint(self) -> str:
        """Hash of the JSON, the classes, and the names and sizes of the split's files."""
        listed = None if self.annotations is None else read_text(storage.join(self.root, self.annotations), "JSON")
        masks = {} if self.annotations else file_sizes(storage.join(self.root, self.masks))
        return hash_values(self.kind, self.split, self.class_names, listed, self._image_sizes(), masks)

    def _image_sizes(self) -> dict[str, int]:
        sizes = file_sizes(storage.join(self.root, self.images))
        return {name: size for name, size in sizes.items() if name.lower().endswith(IMAGE_ENDING)}


def draw_objects(objects: Iterable[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Draw instances, the largest first, so that small objects stay on top; crowds are to be ignored.

    Args:
        objects: Each with id, class (1..C-1; None if its category is unknown), area, crowd, and segmentation (COCO's
            polygons or run lengths).
        height: Of the image, in pixels.
        width: Of the image.

    Returns:
        uint8 (H, W): class, 0 background, IGNORE_INDEX on crowds.

    Raises:
        ValueError: If a category is unknown, or a segmentation damaged or made for another size; names the annotation.
    """
    mask = np.zeros((height, width), np.uint8)
    for item in sorted(objects, key=lambda item: -item["area"]):
        if item["class"] is None:
            raise ValueError(f"annotation {item['id']} is of an unknown category")
        try:
            covered = rle.decode(_run_lengths(item["segmentation"], height, width)) == 1
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"annotation {item['id']} has a damaged segmentation ({error})") from error
        mask[covered] = IGNORE_INDEX if item["crowd"] else item["class"]
    return mask


def _run_lengths(segmentation: Any, height: int, width: int) -> Any:
    """COCO's segmentation in any of its three forms as compressed run lengths."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"it is for {segmentation['size']} (height, width), the image has {[height, width]}")
        if isinstance(segmentation["counts"], str):
            return segmentation
        if sum(segmentation["counts"]) != height * width:
            raise ValueError("its counts do not add up to the image's pixels")
        return rle.frPyObjects(segmentation, height, width)  # pyright: ignore[reportCallIssue, reportArgumentType]
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers; three or more points are needed")
    if not segmentation:
        raise ValueError("it has no polygon")
    return rle.merge(rle.frPyObjects(segmentation, height, width))  # pyright: ignore[reportArgumentType]


def _read_instances(root: str, file: str) -> dict[str, Any]:
    """The instances JSON.

    Raises:
        ValueError: If it is not one.
    """
    path = storage.join(root, file)
    form = "COCO's instances JSON with images, annotations and categories"
    try:
        instances = json.loads(read_text(path, form))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); give {form}") from error
    missing = {"images", "annotations", "categories"} - set(instances if isinstance(instances, dict) else ())
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; give {form}")
    return instances


def _class_names(categories: list[dict[str, Any]]) -> list[str]:
    """Names by contiguous index: categories by ascending id, behind the background."""
    return [BACKGROUND_NAME, *(category["name"] for category in sorted(categories, key=lambda c: c["id"]))]


def _list_objects(instances: dict[str, Any], file: str) -> list[tuple[str, str]]:
    """File name and objects of every image; objects as JSON text, so that a list of 100,000 images stays small.

    Raises:
        ValueError: If a field is missing; names the annotation or image.
    """
    index = {id: i for i, id in enumerate(sorted(category["id"] for category in instances["categories"]), start=1)}
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in instances["annotations"]:
        try:
            item = {name: row[name] for name in ("id", "area", "segmentation")}
            item |= {"class": index.get(row["category_id"]), "crowd": row["iscrowd"]}
            objects[row["image_id"]].append(item)
        except KeyError as error:
            raise ValueError(f"{file}: annotation {row.get('id', '?')} has no field {error}") from error
    return [(image["file_name"], json.dumps(objects[image["id"]])) for image in instances["images"]]
