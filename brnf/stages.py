"""The stages, one function each: what it reads, what its output depends on, what does it.

The single commands call them as the chains do, so that `brnf label --run OUT/brnf` and the pipeline agree on what is up
to date.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from brnf.config import (
    BrnfConfig,
    CalibrationConfig,
    ContrastConfig,
    DenoiseConfig,
    ReadOutConfig,
    Refiner,
    RunConfig,
    as_dict,
    parse,
    require,
)
from brnf.data import storage
from brnf.data.schema import CONFIG
from brnf.export import ID, FormatName
from brnf.stage import Stage, StageName, manifest_hash
from brnf.tune_space import TuneSpace

VERSIONS: dict[StageName, int] = {
    "prepare": 1, "base": 1, "seeds": 1, "clean": 1, "brnf": 2, "label": 2, "evaluate": 2, "tune": 1, "score": 1,
    "export": 1, "irn": 1,
}  # fmt: skip
"""Raised when a stage's code changes what it writes for the same inputs, so that old outputs count as stale."""


def prepare_stage(config: RunConfig, *, root: str, split: str, out: str) -> Stage:
    """A data set's split -> shards.

    Args:
        config: `config.data` matters.
        root: The VOC2012 or COCO tree, or the folder of images.
        split: Name of the split; a folder of images is one split, under any name.
        out: Directory of the shards.

    Raises:
        ValueError: If the source is not there.
    """
    from brnf.data.sources import inputs_fingerprint

    data = dataclasses.replace(
        config.data,
        tags=config.data.tags and storage.absolute(config.data.tags),
        classes=config.data.classes and storage.absolute(config.data.classes),
    )
    root, out = storage.absolute(root), storage.absolute(out)

    def work() -> dict[str, Any]:
        from brnf.distributed.prepare import prepare

        return prepare(data, root=root, split=split, out=out)

    return Stage(
        name="prepare",
        version=VERSIONS["prepare"],
        out=out,
        matters={"kind": data.kind, "split": split, "unit_rows": data.unit_rows, "part_rows": data.part_rows},
        config=dataclasses.replace(config, data=data),
        inputs={"source": inputs_fingerprint(data, root=root, split=split)},
        work=work,
    )


def train_stage(
    config: RunConfig,
    *,
    method: Literal["sipe", "brnf"],
    shards: str,
    out: str,
    seeds: str | None = None,
    base: str | None = None,
    name: StageName | None = None,
) -> Stage:
    """Shards (and seeds) -> a trained run: the base network with method sipe, else BRNF.

    A name stands in for that of the method, "base" or "brnf".

    Raises:
        ValueError: If an input is not a finished stage's, or method brnf lacks its seeds.
    """
    if method == "brnf" and seeds is None:
        raise ValueError("--method brnf needs --seeds DIR: make them with `brnf seeds --run BASE --shards ...`")
    if method == "sipe" and (seeds or base):
        raise ValueError("--method sipe is the base itself and takes neither --seeds nor --base: leave them out")
    part = "base" if method == "sipe" else "brnf"
    name = name or part
    given = {"shards": shards, "seeds": seeds, "base": base}
    paths = {role: storage.absolute(path) for role, path in given.items() if path}
    out = storage.absolute(out)

    def work() -> dict[str, Any]:
        from brnf.distributed.train import train

        return train(
            config, method=method, shards=paths["shards"], seeds=paths.get("seeds"), base=paths.get("base"), out=out
        )

    values = as_dict(config)
    return Stage(
        name=name,
        version=VERSIONS[name],
        out=out,
        matters={
            **{key: values[key] for key in ("random_seed", "backbone", "cam", "augment", part)},
            "precision": config.compute.precision,  # the one field of compute that shows in results
        },
        config=config,
        inputs={role: manifest_hash(path) for role, path in paths.items()},
        work=work,
    )


def seeds_stage(
    config: RunConfig,
    *,
    run: str,
    shards: str,
    out: str,
    read_out: ReadOutConfig | None = None,
    name: StageName = "seeds",
) -> Stage:
    """A trained base and shards -> base seeds, read out as `config.seeds` says, or as `read_out`."""
    run, shards, out = map(storage.absolute, (run, shards, out))
    how = read_out or config.seeds

    def work() -> dict[str, Any]:
        from brnf.distributed.label import make_seeds

        return make_seeds(how, config.compute, run=run, shards=shards, out=out)

    return _read_out_stage(name, config, how, run=run, shards=shards, out=out, work=work)


def clean_config(config: RunConfig) -> RunConfig:
    """The configuration that f1 learns the base seeds with, for `config.clean`."""
    flow = BrnfConfig(
        optim=config.clean.optim,
        init="base",
        train_network=False,
        f1=config.clean.flow,
        f1_labels="seed",
        calibration=CalibrationConfig(weight=0.0, fit_temperature=False),
        denoise=DenoiseConfig(enabled=False),
        contrast=ContrastConfig(weight=0.0),
    )
    return dataclasses.replace(config, brnf=flow)


def true_seeds_stage(config: RunConfig, *, shards: str, out: str) -> Stage:
    """Shards with masks -> seeds that are the masks."""
    shards, out = map(storage.absolute, (shards, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.true_seeds import make_true_seeds

        return make_true_seeds(shards=shards, out=out)

    return Stage(
        name="seeds",
        version=VERSIONS["seeds"],
        out=out,
        matters={"source": "true masks"},
        config=config,
        inputs={"shards": manifest_hash(shards)},
        work=work,
    )


def irn_labels_stage(config: RunConfig, *, shards: str, seeds: str, out: str) -> Stage:
    """Shards and their base seeds -> the classes of cells that a boundary network can be sure of.

    Raises:
        ValueError: If an input is not a finished stage's, or the network could not be trained with these workers.
    """
    _check_irn_workers(config)
    shards, seeds, out = map(storage.absolute, (shards, seeds, out))
    options = config.irn

    def work() -> dict[str, Any]:
        from brnf.distributed.irn_labels import make_irn_labels

        return make_irn_labels(options, shards=shards, seeds=seeds, out=out)

    return Stage(
        name="irn",
        version=VERSIONS["irn"],
        out=out,
        matters={
            "foreground_factor": options.foreground_factor,
            "background_factor": options.background_factor,
            "crf": dataclasses.asdict(options.crf),
        },
        config=config,
        inputs={"shards": manifest_hash(shards), "seeds": manifest_hash(seeds)},
        work=work,
    )


def irn_stage(config: RunConfig, *, shards: str, labels: str, out: str) -> Stage:
    """Shards and the output of `irn_labels_stage`, which may lie in `out` -> a trained boundary network.

    Raises:
        ValueError: If an input is not a finished stage's, or the batch does not divide among the workers.
    """
    _check_irn_workers(config)
    shards, labels, out = map(storage.absolute, (shards, labels, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.train import train

        return train(config, method="irn", shards=shards, seeds=labels, out=out)

    values = as_dict(config)
    return Stage(
        name="irn",
        version=VERSIONS["irn"],
        out=out,
        matters={
            **{key: values[key] for key in ("random_seed", "backbone", "augment", "irn")},
            "precision": config.compute.precision,
        },
        config=config,
        inputs={"shards": manifest_hash(shards), "labels": manifest_hash(labels)},
        work=work,
        beside=(labels.removeprefix(f"{out}/"),),
    )


def _check_irn_workers(config: RunConfig) -> None:
    """Not a check of RunConfig, since most runs have no boundary network."""
    batch, workers = config.irn.optim.batch_size, config.compute.num_workers
    require(batch % workers == 0, "irn.optim.batch_size", batch, f"give a multiple of compute.num_workers ({workers})")


def label_stage(config: RunConfig, *, run: str, shards: str, out: str) -> Stage:
    """A trained run and shards -> labels, read out as `config.label` and written as `config.masks` say."""
    run, shards, out = map(storage.absolute, (run, shards, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.label import label

        return label(config.label, config.compute, run=run, shards=shards, out=out, masks=config.masks)

    masks = dataclasses.asdict(config.masks)
    return _read_out_stage("label", config, config.label, masks, run=run, shards=shards, out=out, work=work)


def score_stage(config: RunConfig, ways: Sequence[ReadOutConfig], *, run: str, shards: str, out: str) -> Stage:
    """A trained run and shards with masks -> what every image scores in each way of reading the run."""
    run, shards, out = map(storage.absolute, (run, shards, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.score import score

        return score(ways, config.compute, run=run, shards=shards, out=out)

    return Stage(
        name="score",
        version=VERSIONS["score"],
        out=out,
        matters={"read_outs": [_matters(way) for way in ways], "precision": config.compute.precision},
        config=config,
        inputs={"run": manifest_hash(run), "shards": manifest_hash(shards)},
        work=work,
    )


def _read_out_stage(
    name: StageName,
    config: RunConfig,
    read_out: ReadOutConfig,
    beside: dict[str, Any] | None = None,
    *,
    run: str,
    shards: str,
    out: str,
    work: Callable[[], dict[str, Any]],
) -> Stage:
    return Stage(
        name=name,
        version=VERSIONS[name],
        out=out,
        matters={"read_out": _matters(read_out), "precision": config.compute.precision, **(beside or {})},
        config=config,
        inputs={"run": manifest_hash(run), "shards": manifest_hash(shards), **_boundary_input(read_out)},
        work=work,
    )


def _matters(read_out: ReadOutConfig) -> dict[str, Any]:
    """What labels depend on in a way of reading: not on refiners that take no part, nor on where boundaries lie."""
    values = dataclasses.asdict(read_out)
    values["walk"].pop("boundaries")
    return {name: value for name, value in values.items() if name not in get_args(Refiner) or name in read_out.refiners}


def _boundary_input(read_out: ReadOutConfig) -> dict[str, str]:
    """The boundary network among a stage's inputs, where there is a walk."""
    return {"boundaries": manifest_hash(str(read_out.walk.boundaries))} if "walk" in read_out.refiners else {}


def export_stage(*, labels: str, format: FormatName, image: str, out: str) -> Stage:
    """Labels -> the same in the format of another tool.

    Raises:
        ValueError: If the labels are not complete, or `image` has no place for an id.
    """
    if ID not in image:
        raise ValueError(f"--image is {image!r}, the same for all: put {ID} where their ids go (photos/{ID}.jpg)")
    labels, out = map(storage.absolute, (labels, out))
    inputs = {"labels": manifest_hash(labels)}

    def work() -> dict[str, Any]:
        from brnf.export.formats import export

        return export(labels, out, format, image)

    return Stage(
        name="export",
        version=VERSIONS["export"],
        out=out,
        matters={"format": format, "image": image},
        config=run_config(labels),
        inputs=inputs,
        work=work,
    )


def tune_stage(
    config: RunConfig, space: TuneSpace, *, shards: str, seeds: str, base: str, scored: str, out: str
) -> Stage:
    """Shards, base seeds and a space -> trials with their scores.

    Raises:
        ValueError: If the space does not fit the configuration; names the field.
    """
    samples, inputs = space.samples(config), {"shards": shards, "seeds": seeds, "base": base, "scored": scored}

    def work() -> dict[str, Any]:
        from brnf.distributed.tune import Sweep, search

        return search(Sweep(config=config, space=space, samples=samples, out=out, **inputs))

    values = as_dict(config)
    trained_by = {part: values[part] for part in ("random_seed", "backbone", "cam", "augment", "brnf", "label")}
    return Stage(
        name="tune",
        version=VERSIONS["tune"],
        out=out,
        matters={**trained_by, "score_classes": values["data"]["score_classes"], "space": dataclasses.asdict(space)},
        config=config,
        inputs={role: manifest_hash(path) for role, path in inputs.items()},
        work=work,
    )


def run_config(run: str, flag: str = "--run", writer: str = "brnf train") -> RunConfig:
    """The resolved configuration that a stage left in its directory.

    Raises:
        ValueError: If `run` is not the output of a stage; says which `flag` needs the output of which `writer`.
    """
    path = storage.join(run, CONFIG)
    if not storage.exists(path):
        raise ValueError(f"{flag} {run} holds no {CONFIG}: give the output directory of `{writer}`")
    return parse(storage.read_json(path)["config"])
