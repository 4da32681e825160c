"""Labels in the formats of other tools, part by part; each format is one class."""

from __future__ import annotations

import abc
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brnf.data import storage
from brnf.data.labels import Labels
from brnf.data.schema import FORMAT_VERSION, MANIFEST
from brnf.data.transforms import decode_mask
from brnf.export import ID, FormatName
from brnf.export.coco_json import regions
from brnf.export.label_studio import labelling_config, task


def export(labels: str, out: str, format: FormatName, image: str) -> dict[str, Any]:
    """Write finished labels in the format of another tool.

    Args:
        labels: Directory that `brnf label` completed.
        out: Directory to write.
        format: Which format.
        image: Path or URL of the images for the tool that reads the export, "{id}" for the id; `coco` and
            `label-studio` state it.

    Returns:
        The manifest, which is written last.

    Raises:
        ValueError: If the labels are not complete.
    """
    opened = Labels.open(labels)
    writer = WRITERS[format](labels=opened, out=out, image=image)
    names = sorted(set(opened.files.values()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = [piece for pieces in pool.map(writer.write_part, names) for piece in pieces]
    writer.finish(written)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "export",
        "format": format,
        "class_names": writer.class_names,
        "num_images": len(written),
        "num_refused": len(opened.manifest["quarantine"]),
        "protocol": opened.manifest["protocol"],
        "quarantine": opened.manifest["quarantine"],
    }
    storage.write_json(storage.join(out, MANIFEST), manifest)
    return manifest


@dataclass(frozen=True, kw_only=True)
class FormatWriter(abc.ABC):
    """Writes the images of one part after another, in any order, and then what there is one of."""

    labels: Labels
    out: str
    image: str

    @property
    def class_names(self) -> list[str]:
        return self.labels.manifest["class_names"]

    def path(self, *names: str) -> str:
        return storage.join(self.out, *names)

    @abc.abstractmethod
    def write_part(self, name: str) -> Sequence[Any]:
        """Write the images of one part file.

        Returns:
            For each of them what `finish` needs to know.
        """

    def finish(self, written: Sequence[Any]) -> None:  # noqa: B027
        """Write what there is one of for all images, if there is such a thing."""


class ImageWriter(FormatWriter):
    """Writes one image after another."""

    def write_part(self, name: str) -> Sequence[Any]:
        return [self.write_image(row) for row in self.labels.read_part(name).to_pylist()]

    @abc.abstractmethod
    def write_image(self, row: dict[str, Any]) -> Any:
        """Write one image, given as its row of schema.LABEL, and return what `finish` needs to know of it."""


class CocoWriter(ImageWriter):
    """One annotations.json. Ids of images and regions count from 1 in the order of the parts."""

    def write_image(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        described = {"file_name": self.image.replace(ID, row["id"]), "width": row["width"], "height": row["height"]}
        return described, regions(decode_mask(row["mask"]))

    def finish(self, written: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
        images, annotations = [], []
        for number, (described, found) in enumerate(written, start=1):
            images.append({"id": number, **described})
            annotations += [{"id": len(annotations) + n, "image_id": number, **r} for n, r in enumerate(found, start=1)]
        categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names) if index > 0]
        content = {"images": images, "annotations": annotations, "categories": categories}
        storage.write_bytes(self.path("annotations.json"), json.dumps(content, ensure_ascii=False).encode())


class LabelStudioWriter(ImageWriter):
    """tasks.json with the labels as predictions, labelling.xml for the set-up of the project."""

    def write_image(self, row: dict[str, Any]) -> dict[str, Any]:
        model = f"brnf {self.labels.manifest['run_hash']}"
        image = self.image.replace(ID, row["id"])
        return task(row, decode_mask(row["mask"]), self.class_names, image, model)

    def finish(self, written: Sequence[dict[str, Any]]) -> None:
        storage.write_bytes(self.path("tasks.json"), json.dumps(written, ensure_ascii=False).encode())
        storage.write_bytes(self.path("labelling.xml"), labelling_config(self.class_names).encode())


class VocWriter(ImageWriter):
    """A tree that VOC loaders read: SegmentationClass/{id}.png, ImageSets/Segmentation/{split}.txt, classes.txt."""

    def write_image(self, row: dict[str, Any]) -> str:
        storage.write_bytes(self.path("SegmentationClass", f"{row['id']}.png"), row["mask"])
        return row["id"]

    def finish(self, written: Sequence[str]) -> None:
        split = self.labels.manifest["protocol"]["split"]
        for path, lines in (
            (self.path("ImageSets", "Segmentation", f"{split}.txt"), sorted(written)),
            (self.path("classes.txt"), self.class_names[1:]),
        ):
            storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


class ParquetWriter(FormatWriter):
    """Parquet files of id, mask (palette PNG), size and quality figures; class names in the schema's metadata."""

    def write_part(self, name: str) -> Sequence[str]:
        table = self.labels.read_part(name).drop_columns(["error"])
        metadata = {"class_names": json.dumps(self.class_names, ensure_ascii=False)}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        storage.write_bytes(self.path(name), sink.getvalue().to_pybytes())
        return table["id"].to_pylist()


class NpzWriter(ImageWriter):
    """masks/{id}.npz, each with the array `mask`, uint8 (H, W)."""

    def write_image(self, row: dict[str, Any]) -> str:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, mask=decode_mask(row["mask"]))
        storage.write_bytes(self.path("masks", f"{row['id']}.npz"), buffer.getvalue())
        return row["id"]


WRITERS: dict[FormatName, type[FormatWriter]] = {
    "coco": CocoWriter,
    "label-studio": LabelStudioWriter,
    "voc": VocWriter,
    "parquet": ParquetWriter,
    "npz": NpzWriter,
}
