"""The report of a run: one HTML file that holds everything it shows and works offline."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from brnf import __version__
from brnf.data import storage
from brnf.data.palette import voc_palette
from brnf.evaluation.gallery import GalleryRow, paint

Metrics = Mapping[str, Any]

METHODS = {"base": "Base (SIPE)", "brnf": "BRNF"}
COLORS = {"base": "#9a9a9a", "brnf": "#1b62a8"}
SCORES = {"miou": "mIoU", "mean_fp": "Over-activation (mean FP)", "mean_fn": "Under-activation (mean FN)"}
PICTURES = {"base_seed": "Base seed", "base_label": "Base label", "label": "BRNF label", "mask": "Mask"}
MODULES = {"calibration": "Calibration", "denoise": "BSDNF (denoising)", "contrast": "Contrast (FSCL)"}
COUNTS = {"sampled_features": "Sampled features in the memory bank"}
NOT_CURVES = ("step", "epoch", "images_per_second", "depressed_share_of")
"""What the names of figures that are not plotted begin with; those of single classes are for TensorBoard."""
JPEG_QUALITY = 85


def write_report(
    path: str,
    *,
    title: str,
    summary: Mapping[str, Any],
    table: Mapping[str, Metrics],
    gain: Mapping[str, Any],
    activity: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    gallery: Sequence[GalleryRow],
    notes: Sequence[str],
) -> None:
    """Write the report of a run. A part that has nothing to show is left out.

    Args:
        path: HTML file to write, a path or URI.
        title: Heading.
        summary: What was run, shown in this order (config hash, recipe, random seed, ...). `strict_weak` becomes a
            sentence, `quarantine` (images refused, by directory or stage) a table.
        table: Results of `evaluate` by method, "base" and "brnf", either or both or none.
        gain: Result of `compare`, BRNF against the base; empty without both.
        activity: Share of steps that each module took part in, by name; `sampled_features`, a count.
        curves: Rows of metrics.jsonl, by method.
        gallery: Rows of `gallery_rows`.
        notes: Sentences that the reader must know.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "value": _value, "label": _label}
    html = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        methods={name: METHODS[name] for name in METHODS if name in table},
        summary={key: value for key, value in summary.items() if key not in ("quarantine", "strict_weak")},
        strict_weak=summary.get("strict_weak"),
        quarantine=summary.get("quarantine", {}),
        scores=_score_lines(table, gain),
        classes=_class_lines(table),
        protocols=_protocols(table),
        activity={(MODULES | COUNTS).get(key, _label(key)): value for key, value in activity.items()},
        curves=_plot_curves(curves),
        colors={METHODS[method]: COLORS[method] for method in METHODS if curves.get(method)},
        gallery=[_picture_row(row, _shown(gallery)) for row in gallery],
        columns=[PICTURES[name] for name in _shown(gallery)],
        notes=notes,
    )
    storage.write_bytes(path, html.encode())


@dataclass(frozen=True)
class ScoreLine:
    """One score of both methods."""

    name: str
    values: dict[str, float | None]
    best: str | None
    """The better method; none if equal or alone."""
    change: float | None
    """BRNF minus base."""
    interval: tuple[float, float] | None = None
    """Where 95 % of paired bootstrap draws of the change lie."""


def _score_lines(table: Mapping[str, Metrics], gain: Mapping[str, Any]) -> list[ScoreLine]:
    """The summary scores, and the share of context where the data tells it."""
    lines = [_score_line(name, {m: table[m][key] for m in table}, key == "miou") for key, name in SCORES.items()]
    known = [key for key in SCORES if gain and gain[key]["low"] is not None]
    intervals = {SCORES[key]: (gain[key]["low"], gain[key]["high"]) for key in known}
    lines = [replace(line, interval=intervals.get(line.name)) for line in lines]
    shares = {m: table[m]["context_share"]["mean"] for m in table if "context_share" in table[m]}
    return [*lines, *([_score_line("Context taken for the class", shares, False)] if shares else [])] if table else []


def _score_line(name: str, values: dict[str, float | None], higher_is_better: bool) -> ScoreLine:
    base, brnf = values.get("base"), values.get("brnf")
    if base is None or brnf is None or base == brnf:
        return ScoreLine(name, values, None, None if base is None or brnf is None else 0.0)
    return ScoreLine(name, values, "brnf" if (brnf > base) == higher_is_better else "base", brnf - base)


@dataclass(frozen=True)
class ClassLine:
    """IoU, FP and FN of one class by method."""

    name: str
    color: str
    averaged: bool
    scores: dict[str, dict[str, float | None]]
    """By score, by method."""
    best: dict[str, str | None]
    """The better method by score."""


def _class_lines(table: Mapping[str, Metrics]) -> list[ClassLine]:
    """Classes that truth or labels hold, in their order."""
    if not table:
        return []
    first = next(iter(table.values()))
    averaged = {*first["protocol"]["classes_averaged"], next(iter(first["iou"]))}
    lines = []
    for index, name in enumerate(first["iou"]):
        scores = {key: {method: table[method][key][name] for method in table} for key in ("iou", "fp", "fn")}
        if any(value is not None for value in scores["iou"].values()):
            best = {key: _score_line(key, values, key == "iou").best for key, values in scores.items()}
            lines.append(ClassLine(name, _hex(index), name in averaged, scores, best))
    return lines


def _protocols(table: Mapping[str, Metrics]) -> dict[str, dict[str, Any]]:
    """How each method was scored, by heading; one for both if it was the same."""
    found = {
        f"Protocol of {METHODS[method]}": {"images_scored": table[method]["images"], **table[method]["protocol"]}
        for method in METHODS
        if method in table
    }
    protocols = list(found.values())
    return {"Protocol": protocols[0]} if protocols and all(p == protocols[0] for p in protocols) else found


def _plot_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup | None:
    """Every figure of metrics.jsonl over steps, one small plot each, as inline SVG; none without rows."""
    names = list(dict.fromkeys(key for method in METHODS for row in curves.get(method, ()) for key in row))
    names = [name for name in names if not name.startswith(NOT_CURVES)]
    if not names:
        return None
    columns = 4
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, 1.9 * lines), layout="constrained")
    for axes in figure.subplots(lines, columns, squeeze=False).flat[len(names) :]:
        axes.remove()
    for name, axes in zip(names, figure.axes, strict=True):
        for method in METHODS:
            points = [(row["step"], row[name]) for row in curves.get(method, ()) if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLORS[method], linewidth=1.3)
        axes.set_title(_label(name), fontsize=9, loc="left")
        axes.tick_params(labelsize=7, length=2, color="#bbb")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color("#bbb")
    return _svg(figure)


def _svg(figure: Figure) -> Markup:
    """A figure as an SVG element: text stays text, and the same figure gives the same bytes."""
    buffer = io.StringIO()
    anonymous = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "brnf", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=anonymous, transparent=True)
    content = buffer.getvalue()
    return Markup(content[content.index("<svg") :])  # without the XML header, which HTML has no place for


def _shown(gallery: Sequence[GalleryRow]) -> list[str]:
    """The pictures beside the image that any row has."""
    return [name for name in PICTURES if any(getattr(row, name) is not None for row in gallery)]


def _picture_row(row: GalleryRow, shown: Sequence[str]) -> dict[str, Any]:
    """A row of the gallery with its pictures as data URIs."""
    maps = [getattr(row, name) for name in shown]
    return {
        "id": row.id,
        "tags": {name: _hex(index) for name, index in row.tags.items()},
        "image": _data_uri(row.image),
        "pictures": [None if classes is None else _data_uri(paint(row.image, classes)) for classes in maps],
    }


def _data_uri(image: np.ndarray) -> str:
    """uint8 (H, W, 3) RGB as an inline JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def _hex(index: int) -> str:
    red, green, blue = voc_palette()[index]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _percent(value: float | None, sign: bool = False) -> str:
    """A share in percent with one decimal; a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def _value(value: object) -> str:
    """A value of summary or protocol as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _label(key: str) -> str:
    """The name of a field as a heading."""
    return key[:1].upper() + key[1:].replace("_", " ")
