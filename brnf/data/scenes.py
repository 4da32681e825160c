"""The built-in sample: rendered scenes with a dial for co-occurrence bias, in VOC layout.

An object of a class stands on its own context (a boat on water) with probability `bias`, else on any other ground.
With a high bias a network that learns from tags alone is tempted to take the water for the boat; the context maps
written beside the masks let `brnf evaluate` count how often it does. FROZEN: see scene_drawings.py.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image
from pyarrow import fs

from brnf.config import require
from brnf.data import storage
from brnf.data.palette import voc_palette
from brnf.data.scene_drawings import GROUNDS, KINDS, Brush, Colour, Shape, smooth_noise
from brnf.data.schema import BACKGROUND, IGNORE_INDEX

GENERATOR_VERSION = 1
CLASS_NAMES = tuple(kind.name for kind in KINDS)
SAMPLE = "sample.json"
"""Parameters of the tree; `complete` turns true when everything else has been written."""

TWO_OBJECTS, SAME_KIND, NEUTRAL_STRIP, FOREGROUND = 0.4, 0.2, 0.5, 0.3
"""Shares: of scenes with two objects, of those with two of a kind, of scenes of one object with a strip of neutral
ground, of objects whose feet sink into the ground."""


class Scene(NamedTuple):
    """One image with everything known about it."""

    image: np.ndarray
    """uint8 (H, W, 3), RGB."""
    mask: np.ndarray
    """uint8 (H, W): 0 ground, 1 + i KINDS[i], 255 a border about 2 px wide around objects."""
    context: np.ndarray
    """uint8 (H, W): class that this ground goes with, 0 for neutral grounds and wherever the mask is not 0."""
    labels: tuple[int, ...]
    """Classes in the mask, ascending."""


def render_scene(rng: np.random.Generator, bias: float, image_size: int = 144) -> Scene:
    """Render one scene: one or two objects, each in its own part of the image on a ground of its own.

    Args:
        rng: Everything random.
        bias: Probability that an object stands on the context of its class, in [0, 1].
        image_size: Longest side in pixels.
    """
    short = round(image_size * rng.uniform(0.7, 1.0))
    upright = rng.random() < 0.3
    shape = (image_size, short) if upright else (short, image_size)
    classes = _draw_classes(rng)
    grounds = [_draw_ground(rng, bias, c) for c in classes]
    if len(classes) == 2 and classes[0] == classes[1]:
        grounds[1] = grounds[0]
    second = _second_part(rng, shape, upright, strip=len(classes) == 1)
    if len(classes) == 1:
        neutral = int(rng.integers(len(KINDS), len(GROUNDS)))
        grounds.append(neutral if rng.random() < NEUTRAL_STRIP else grounds[0])

    canvas = GROUNDS[grounds[0]](rng, shape)
    if grounds[1] != grounds[0]:
        canvas = np.where(second[..., None], GROUNDS[grounds[1]](rng, shape), canvas)
    goes_with = [g + 1 if g < len(KINDS) else BACKGROUND for g in grounds]
    context = np.where(second, goes_with[1], goes_with[0]).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    border = np.zeros(shape, bool)
    for place, class_index in enumerate(classes):
        canvas, cover = _place_object(rng, canvas, class_index, place, len(classes), upright)
        inside = cover >= 0.5
        mask[inside] = class_index
        border = (border & ~inside) | _outline(inside)
    mask[border] = IGNORE_INDEX
    context[mask != BACKGROUND] = BACKGROUND
    labels = tuple(int(c) for c in np.unique(mask) if c not in (BACKGROUND, IGNORE_INDEX))
    return Scene(_photograph(rng, canvas), mask, context, labels)


def render_sample(
    out: str,
    *,
    bias: float = 0.9,
    random_seed: int = 0,
    num_train: int = 240,
    num_val: int = 60,
    image_size: int = 144,
) -> None:
    """Render a data set in VOC layout; nothing happens if `out` holds it already.

    Args:
        out: Directory, a path or URI: JPEGImages, SegmentationClass, SegmentationContext, Annotations,
            ImageSets/Segmentation/{train,val}.txt, classes.txt, sample.json.
        bias: Probability that an object stands on the context of its class, in [0, 1].
        random_seed: Everything random follows from it; image i is the same whatever the number of images.
        num_train: Images of split train.
        num_val: Images of split val.
        image_size: Longest side in pixels.

    Raises:
        ValueError: If a value is impossible or `out` holds something else.
    """
    require(0 <= bias <= 1, "bias", bias, "give 0 to 1")
    require(random_seed >= 0, "random_seed", random_seed, "give 0 or more")
    require(num_train >= 1, "num_train", num_train, "give 1 or more")
    require(num_val >= 1, "num_val", num_val, "give 1 or more")
    require(image_size >= 64, "image_size", image_size, "give 64 or more")
    parameters = {
        "generator_version": GENERATOR_VERSION, "bias": bias, "random_seed": random_seed,
        "num_train": num_train, "num_val": num_val, "image_size": image_size,
    }  # fmt: skip
    if _holds(out, parameters):
        return
    storage.write_json(storage.join(out, SAMPLE), {**parameters, "complete": False})
    storage.write_bytes(storage.join(out, "classes.txt"), _lines(CLASS_NAMES))
    for split_index, (split, number) in enumerate((("train", num_train), ("val", num_val))):
        ids = [f"{split}_{i:05d}" for i in range(number)]
        for i, id in enumerate(ids):
            scene = render_scene(np.random.default_rng([random_seed, split_index, i]), bias, image_size)
            _write_scene(out, id, scene)
        storage.write_bytes(storage.join(out, "ImageSets", "Segmentation", f"{split}.txt"), _lines(ids))
    storage.write_json(storage.join(out, SAMPLE), {**parameters, "complete": True})


# --- composing a scene


def _draw_classes(rng: np.random.Generator) -> list[int]:
    """Classes of one or two objects."""
    first, other = (int(c) + 1 for c in rng.permutation(len(KINDS))[:2])
    two, same = rng.random() < TWO_OBJECTS, rng.random() < SAME_KIND
    return [first] if not two else [first, first if same else other]


def _draw_ground(rng: np.random.Generator, bias: float, class_index: int) -> int:
    """Index in GROUNDS: the class's own with probability `bias`, else any other, all alike."""
    other = int(rng.integers(len(GROUNDS) - 1))
    own = class_index - 1
    return own if rng.random() < bias else other + (other >= own)


def _second_part(rng: np.random.Generator, shape: Shape, upright: bool, strip: bool) -> np.ndarray:
    """Which pixels belong to the second ground: about half of the image, or a strip at the far edge."""
    length, width = shape if upright else shape[::-1]
    edge = length * (rng.uniform(0.7, 0.85) if strip else rng.uniform(0.44, 0.56))
    wave = rng.uniform(2, 5) * np.sin(np.arange(width) / rng.uniform(8, 20) + rng.uniform(0, 6))
    beyond = np.arange(length)[:, None] > edge + wave + rng.uniform(-0.15, 0.15) * (np.arange(width) - width / 2)
    return beyond if upright else beyond.T


def _place_object(
    rng: np.random.Generator, canvas: Colour, class_index: int, place: int, objects: int, upright: bool
) -> tuple[Colour, np.ndarray]:
    """Draw an object and its shadow into its part of the image; returns the canvas and the object's coverage."""
    shape = canvas.shape[:2]
    part = np.array(shape, float)
    along = 0 if upright else 1
    part[along] *= 0.5 if objects == 2 else 0.8
    radius = min(part[1] / 2.5, part[0] / 2.0) * rng.uniform(0.7, 1.0)
    room = np.maximum(part - radius * np.array([1.8, 2.3]), 0)
    centre = part / 2 + room * rng.uniform(-0.5, 0.5, 2)
    centre[along] += place * part[along]
    brush = Brush.at(shape, (centre[0], centre[1]), radius, rng.uniform(-0.2, 0.2), rng.random() < 0.5)
    KINDS[class_index - 1].draw(rng, brush)
    if rng.random() < FOREGROUND:
        line = rng.uniform(0.35, 0.6) + 0.06 * np.sin(brush.u * rng.uniform(6, 12))
        brush.cover = brush.cover * np.clip((line - brush.v) * radius, 0, 1)
    shadow = np.clip(-brush.ellipse(0.1, 0.75, 1.1, 0.22) * 6, 0, 1) * 0.45
    canvas = canvas * (1 - shadow)[..., None]
    return canvas + (brush.paint - canvas) * brush.cover[..., None], brush.cover


def _outline(inside: np.ndarray) -> np.ndarray:
    """Pixels that have both the object and something else among their four neighbours and themselves."""
    padded = np.pad(inside, 1, mode="edge")
    around = [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return np.any(around, axis=0) & ~np.all(around, axis=0)


def _photograph(rng: np.random.Generator, canvas: Colour) -> np.ndarray:
    """Light, tint and grain of a camera; uint8."""
    light = 1 + 0.06 * smooth_noise(rng, canvas.shape[:2], (90, 90), 1)
    tint = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)
    grain = rng.uniform(-0.02, 0.02, canvas.shape)
    return np.rint(np.clip(canvas * light[..., None] * tint + grain, 0, 1) * 255).astype(np.uint8)


# --- writing the tree


def _holds(out: str, parameters: dict[str, Any]) -> bool:
    """Whether `out` holds this very sample, complete. An interrupted one is rendered again over itself."""
    filesystem, inner = storage.open_location(out)
    if not filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True)):
        return False
    marker = storage.join(out, SAMPLE)
    if not storage.exists(marker):
        raise ValueError(f"{out} holds files that are no sample; give another directory")
    found = storage.read_json(marker)
    complete = found.pop("complete", None)
    if found != parameters:
        raise ValueError(f"{out} holds a sample of other parameters ({found}); give another directory, or delete it")
    return bool(complete)


def _write_scene(out: str, id: str, scene: Scene) -> None:
    """Write image, mask, context map and annotation of one scene."""
    jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    storage.write_bytes(storage.join(out, "JPEGImages", f"{id}.jpg"), jpeg)
    storage.write_bytes(storage.join(out, "SegmentationClass", f"{id}.png"), _palette_png(scene.mask))
    storage.write_bytes(storage.join(out, "SegmentationContext", f"{id}.png"), _palette_png(scene.context))
    storage.write_bytes(storage.join(out, "Annotations", f"{id}.xml"), _annotation(id, scene))


def _palette_png(class_map: np.ndarray) -> bytes:
    """uint8 (H, W) of class indices as a PNG with VOC's colours."""
    image = Image.fromarray(class_map)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _annotation(id: str, scene: Scene) -> bytes:
    """VOC's XML: one object a class, with the box around its pixels."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{id}.jpg"
    size = ElementTree.SubElement(root, "size")
    height, width = scene.mask.shape
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for label in scene.labels:
        rows, columns = np.nonzero(scene.mask == label)
        found = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(found, "name").text = CLASS_NAMES[label - 1]
        ElementTree.SubElement(found, "difficult").text = "0"
        box = ElementTree.SubElement(found, "bndbox")
        corners = (("xmin", columns.min()), ("ymin", rows.min()), ("xmax", columns.max()), ("ymax", rows.max()))
        for name, value in corners:
            ElementTree.SubElement(box, name).text = str(value + 1)  # VOC counts pixels from 1
    ElementTree.indent(root)
    return ElementTree.tostring(root)


def _lines(names: list[str] | tuple[str, ...]) -> bytes:
    return ("\n".join(names) + "\n").encode()
