"""The report: one file, all it shows inside it, whatever there is to show."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brnf.data.palette import voc_palette
from brnf.evaluation.evaluate import compare, evaluate
from brnf.evaluation.gallery import GalleryRow, gallery_rows, paint
from brnf.evaluation.report import write_report

from .conftest import Split

CURVES = {
    "base": [{"step": 10 * n, "epoch": 0, "classification": 1 / (n + 1), "images_per_second": 14.0} for n in range(9)],
    "brnf": [
        {"step": 10 * n, "classification": 1 / (n + 2), "f1_nll": 2.0 - n / 9, "depressed_share_of_cat": 0.1}
        for n in range(9)
    ],
}


class Reader(HTMLParser):
    """Collects text, pictures and what would be loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.cells: list[list[str]] = []
        self.pictures, self.outside = 0, [*re.findall(r"url\((?!#)[^)]*\)|@import", html)]
        self.best: list[str] = []
        self._in_best = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("src", "href", "xlink:href"):
            target = values.get(name) or "#"
            if not target.startswith(("data:", "#")):
                self.outside.append(target)
        self.outside += [tag] if tag in ("script", "link", "iframe") else []
        self.pictures += tag == "img"
        self._in_best = tag == "td" and "best" in (values.get("class") or "")

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() else []
        if self._in_best and data.strip():
            self.best.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(path: Path, **values: Any) -> Reader:
    nothing: dict[str, Any] = {part: {} for part in ("summary", "table", "gain", "activity", "curves")}
    nothing |= {"gallery": [], "notes": []}
    write_report(str(path), **{"title": "A run", **nothing, **values})
    return Reader(path.read_text())


def test_write_report__full(split: Split, tmp_path: Path):
    wide = split.write_labels(lambda row: np.full_like(split.truth(row), row["image_labels"][0]), "base")
    good = split.write_labels(split.truth)
    table = {"base": evaluate(wide, split.shards), "brnf": evaluate(good, split.shards)}
    page = report(
        tmp_path / "report.html",
        summary={"config_hash": "0123abcd", "random_seed": 7, "strict_weak": True, "quarantine": {"labels/val": 3}},
        table=table,
        gain=compare(good, wide, split.shards),
        activity={"calibration": 0.745, "denoise": 0.7, "contrast": 0.6, "sampled_features": 384},
        curves=CURVES,
        gallery=gallery_rows(split.shards, wide, good, split.write_seeds(), count=5),
        notes=["Trained on <two> epochs."],
    )
    assert page.outside == []
    assert page.pictures == 5 * 5
    for words in ("A run", "0123abcd", "Masks never influenced training", "74.5 % of steps", "384", "<two>", "100.0"):
        assert words in page.text, words
    assert page.best[0] == "100.0"  # BRNF's mIoU
    assert re.search(r"\+\d+\.\d \+\d+\.\d to \+\d+\.\d", page.text)  # the gain in mIoU
    assert "paired bootstrap" in page.text
    assert "Context taken for the class" in page.text and "labels/val" in page.text
    assert "Classification" in page.text and "F1 nll" in page.text and "Images per second" not in page.text
    assert "Depressed share of cat" not in page.text  # one plot a class would bury the others
    assert "cow" not in page.text.replace("boat, train, cow", "")  # in neither truth nor labels: no line of its own


def test_write_report__own_data_without_masks_or_base(split: Split, tmp_path: Path):
    labels = split.write_labels(split.truth)
    for row in split.rows:
        row["mask"] = None
    split.write_shards()
    page = report(tmp_path / "report.html", gallery=gallery_rows(split.shards, None, labels, None, count=4))
    assert page.pictures == 4 * 2
    assert "BRNF label" in page.text and "Mask" not in page.text and "Scores" not in page.text


def test_write_report__one_method_only(split: Split, tmp_path: Path):
    scores = evaluate(split.write_labels(split.truth), split.shards)
    page = report(tmp_path / "report.html", table={"brnf": scores}, curves={"brnf": CURVES["brnf"]})
    assert page.best == [] and "Base (SIPE)" not in page.text and "100.0" in page.text


def test_write_report__same_run_same_bytes(split: Split, tmp_path: Path):
    labels = split.write_labels(split.truth)
    for name in ("one.html", "two.html"):
        report(tmp_path / name, curves=CURVES, gallery=gallery_rows(split.shards, None, labels, None))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_gallery_rows__first_labelled_images_in_the_order_of_the_shards(split: Split):
    lost = split.ids[1]
    labels = split.write_labels(lambda row: None if row["id"] == lost else split.truth(row))
    rows = gallery_rows(split.shards, None, labels, split.write_seeds(), count=6)
    assert [row.id for row in rows] == [id for id in split.ids if id != lost][:6]
    for row, source in zip(rows, [r for r in split.rows if r["id"] != lost], strict=False):
        assert isinstance(row, GalleryRow) and row.label is not None and row.base_seed is not None
        np.testing.assert_array_equal(row.label, split.truth(source))
        assert (row.base_seed == row.label).mean() > 0.85  # the seed is coarse
        assert list(row.tags.values()) == source["image_labels"]


def test_paint__background_bare_objects_coloured_ignore_white():
    image = np.full((20, 20, 3), 100, np.uint8)
    classes = np.zeros((20, 20), np.uint8)
    classes[4:12, 4:12], classes[14:, 14:] = 2, 255
    painted = paint(image, classes)
    np.testing.assert_array_equal(painted[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(painted[4, 4], voc_palette()[2])  # outline
    assert painted[8, 8] == pytest.approx(0.4 * 100 + 0.6 * voc_palette()[2].astype(float), abs=1)
    assert painted[17, 17].min() > 150
