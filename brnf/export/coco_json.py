"""Label maps as COCO annotations: one run-length encoded region for each class of an image."""

# H W pixels

from __future__ import annotations

from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from brnf.data.schema import BACKGROUND, IGNORE_INDEX


def regions(label_map: np.ndarray) -> list[dict[str, Any]]:
    """Annotations of an image, without `id` and `image_id`; ignored pixels belong to none.

    Args:
        label_map: uint8 (H, W), class indices, 255 = ignore.

    Source: the data format of https://cocodataset.org, "stuff segmentation": all of a class is one region.
    """
    return [_region(c, label_map == c) for c in np.unique(label_map).tolist() if c not in (BACKGROUND, IGNORE_INDEX)]


def _region(index: int, covered_HW: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(covered_HW, np.uint8))
    return {
        "category_id": index,
        "segmentation": {"size": rle["size"], "counts": cast(bytes, rle["counts"]).decode()},
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }
