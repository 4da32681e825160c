"""The chain of stages: what each reads, what its output depends on, what is up to date and what is not.

Every stage is built by one function, which the single commands call too, so that `brnf label --run OUT/brnf`
and the pipeline agree on what is up to date. Ray starts when the first stage needs it, and not at all if
nothing is left to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import yaml

from brnf.config import ReadOutConfig, RunConfig, as_dict, config_hash, overlay, parse
from brnf.data import storage
from brnf.data.schema import CONFIG
from brnf.stage import (
    Outcome,
    PipelineStage,
    Stage,
    StageName,
    code_version,
    content_hash,
    manifest_hash,
    run_stage,
)
from brnf.tune_space import TuneSpace

STAGES: tuple[PipelineStage, ...] = get_args(PipelineStage)
VERSIONS: dict[StageName, int] = {
    "prepare": 1, "base": 1, "seeds": 1, "brnf": 1, "label": 1, "evaluate": 2, "tune": 1,
}  # fmt: skip
"""Raised when a stage's code changes what it writes for the same inputs, so that old outputs count as stale."""

def say(message: str) -> None:
    """Print progress; stdout belongs to results."""
    print(message, file=sys.stderr, flush=True)


def progress(stage: StageName, where: str) -> Callable[[str], None]:
    """A function that says how a stage stands: its place in the chain, its directory, how long it took."""
    place = f"[{STAGES.index(stage) + 1}/{len(STAGES)}] " if stage in STAGES else ""
    started = time.monotonic()

    def note(state: str) -> None:
        after = f" after {time.monotonic() - started:.0f} s" if state == "done" else ""
        say(f"{place}{stage}: {state}{after} ({where})")

    return note


# ------------------------------------------------------------------------------------------------ one function a stage


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
) -> Stage:
    """Shards (and seeds) -> a trained run: the base network with method sipe, else BRNF.

    Raises:
        ValueError: If an input is not a finished stage's, or method brnf lacks its seeds.
    """
    if method == "brnf" and seeds is None:
        raise ValueError("--method brnf needs --seeds DIR: make them with `brnf seeds --run BASE --shards ...`")
    if method == "sipe" and (seeds or base):
        raise ValueError("--method sipe is the base itself and takes neither --seeds nor --base: leave them out")
    name: StageName = "base" if method == "sipe" else "brnf"
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
            **{part: values[part] for part in ("random_seed", "backbone", "cam", "augment", name)},
            "precision": config.compute.precision,  # the one field of compute that shows in results
        },
        config=config,
        inputs={role: manifest_hash(path) for role, path in paths.items()},
        work=work,
    )


def seeds_stage(config: RunConfig, *, run: str, shards: str, out: str) -> Stage:
    """A trained base and shards -> base seeds, read out as `config.seeds` says."""
    run, shards, out = map(storage.absolute, (run, shards, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.label import make_seeds

        return make_seeds(config.seeds, config.compute, run=run, shards=shards, out=out)

    return _read_out_stage("seeds", config, config.seeds, run=run, shards=shards, out=out, work=work)


def label_stage(config: RunConfig, *, run: str, shards: str, out: str) -> Stage:
    """A trained run and shards -> labels, read out as `config.label` says."""
    run, shards, out = map(storage.absolute, (run, shards, out))

    def work() -> dict[str, Any]:
        from brnf.distributed.label import label

        return label(config.label, config.compute, run=run, shards=shards, out=out)

    return _read_out_stage("label", config, config.label, run=run, shards=shards, out=out, work=work)


def _read_out_stage(
    name: StageName,
    config: RunConfig,
    read_out: ReadOutConfig,
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
        matters={"read_out": dataclasses.asdict(read_out), "precision": config.compute.precision},
        config=config,
        inputs={"run": manifest_hash(run), "shards": manifest_hash(shards)},
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


def run_config(run: str) -> RunConfig:
    """The resolved configuration that a stage left in its directory.

    Raises:
        ValueError: If `run` is not the output of a stage.
    """
    path = storage.join(run, CONFIG)
    if not storage.exists(path):
        raise ValueError(f"--run {run} holds no {CONFIG}: give the output directory of `brnf train`")
    return parse(storage.read_json(path)["config"])


# -------------------------------------------------------------------------------------------------------- the chain


@dataclass(kw_only=True)
class Pipeline:
    """The stages chained, from a data set to labels, metrics.json and report.html in one directory."""

    config: RunConfig
    root: str
    out: str
    address: str | None = None
    """Ray cluster to use; none starts a local one."""
    force_from: PipelineStage | None = None
    """Do this stage and every later one again."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Every stage that is complete, in order."""
    _session: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _has_session: bool = False

    def run(self) -> dict[str, Any]:
        """Bring everything up to date and return what metrics.json holds.

        Raises:
            ValueError: If the configuration or an input makes a stage impossible; says which and what to do.
        """
        self.out = storage.absolute(self.out)
        with self._session:
            shards = self._prepare(self.config.data.label_splits)  # the score split is among them
            train = shards[self.config.data.train_split]
            base, seeds = self._base_and_seeds(train)
            brnf = self._bring(
                train_stage(self.config, method="brnf", shards=train, seeds=seeds, base=base, out=self._at("brnf"))
            )
            labels = self._label(base, brnf.out, shards)
        metrics = self._evaluate(labels, shards, brnf)
        self._report(labels, shards, seeds, metrics)
        return metrics

    def tune(self, space: TuneSpace) -> dict[str, Any]:
        """Search a space over this pipeline's shards, base and seeds.

        The best configuration goes to best.yaml; a pipeline run from it into the same directory reuses the rest.

        Returns:
            The manifest of the trials.

        Raises:
            ValueError: If the space does not fit the configuration, before anything starts, or no trial succeeds.
        """
        space.samples(self.config)
        self.out = storage.absolute(self.out)
        with self._session:
            shards = self._prepare((space.objective.split,))
            base, seeds = self._base_and_seeds(shards[self.config.data.train_split])
            found = self._bring(
                tune_stage(
                    self.config,
                    space,
                    shards=shards[self.config.data.train_split],
                    seeds=seeds,
                    base=base,
                    scored=shards[space.objective.split],
                    out=self._at("trials"),
                )
            ).manifest
        # Masks chose it: the reports of whoever runs it have to say so.
        best = overlay(self.config, {**found["trials"][0]["values"], "strict_weak": False})
        storage.write_bytes(self._at("best.yaml"), yaml.safe_dump(as_dict(best), sort_keys=False).encode())
        return found

    def _at(self, *names: str) -> str:
        return storage.join(self.out, *names)

    def _forced(self, stage: StageName) -> bool:
        if self.force_from is None or stage not in STAGES:
            return False
        return STAGES.index(stage) >= STAGES.index(self.force_from)

    def _start_ray(self) -> None:
        """Start or join Ray once; it stays until the last stage that needs it is over."""
        if self._has_session:
            return
        from brnf.distributed.session import session

        self._session.enter_context(session(self.address))
        self._has_session = True

    def _bring(self, stage: Stage) -> Outcome:
        """Bring one stage up to date and say so."""
        note = progress(stage.name, stage.out)

        def begin() -> None:
            note("running")
            self._start_ray()

        outcome = run_stage(stage, force=self._forced(stage.name), replace=True, begin=begin)
        note("done" if outcome.ran else "up to date")
        self.outcomes.append(outcome)
        return outcome

    def _prepare(self, others: Sequence[str]) -> dict[str, str]:
        """Shards of the split to train on and of others, each once."""
        splits = dict.fromkeys([self.config.data.train_split, *others])
        return {
            split: self._bring(
                prepare_stage(self.config, root=self.root, split=split, out=self._at("shards", split))
            ).out
            for split in splits
        }

    def _base_and_seeds(self, train: str) -> tuple[str, str]:
        """The base network, and its seeds of the images it was trained on."""
        base = self._bring(train_stage(self.config, method="sipe", shards=train, out=self._at("base"))).out
        return base, self._bring(seeds_stage(self.config, run=base, shards=train, out=self._at("seeds"))).out

    def _label(self, base: str, brnf: str, shards: dict[str, str]) -> dict[str, str]:
        """Labels of BRNF for every split, and of the base for the scored one (key "base"), inside its directory."""
        scored, labels = self.config.data.score_split, {}
        for split in self.config.data.label_splits:
            stage = label_stage(self.config, run=brnf, shards=shards[split], out=self._at("labels", split))
            labels[split] = self._bring(stage).out
        if scored:
            seeds = self.config.seeds
            read_out = dataclasses.replace(
                self.config.label, maps=seeds.maps, background_factor=seeds.background_factor
            )
            config = dataclasses.replace(self.config, label=read_out)
            stage = label_stage(config, run=base, shards=shards[scored], out=storage.join(base, "labels", scored))
            labels["base"] = self._bring(stage).out
        return labels

    def _evaluate(self, labels: dict[str, str], shards: dict[str, str], brnf: Outcome) -> dict[str, Any]:
        """Score base and BRNF on the same images and write metrics.json."""
        data, path = self.config.data, self._at("metrics.json")
        note = progress("evaluate", path)
        inputs = {role: manifest_hash(directory) for role, directory in [*labels.items(), ("run", brnf.out)]}
        key = content_hash([VERSIONS["evaluate"], inputs, list(data.score_classes)])
        if storage.exists(path) and not self._forced("evaluate"):
            metrics = storage.read_json(path)
            if metrics.get("key") == key:
                note("up to date")
                return metrics
        note("running")
        metrics = {}
        if data.score_split:
            from brnf.evaluation.evaluate import compare, evaluate

            scored, classes = shards[data.score_split], data.score_classes or None
            for method, directory in (("base", labels["base"]), ("brnf", labels[data.score_split])):
                metrics[method] = evaluate(directory, scored, classes)
            metrics["gain"] = compare(labels[data.score_split], labels["base"], scored, classes)
        metrics |= {
            "activity": brnf.manifest["activity"],
            "sampled_features": brnf.manifest["sampled_features"],
            "config_hash": config_hash(self.config, "compute"),
            "random_seed": self.config.random_seed,
            "key": key,
        }
        storage.delete(self._at("report.html"))  # it shows the figures of before
        storage.write_json(path, metrics)
        note("done")
        return metrics

    def _report(self, labels: dict[str, str], shards: dict[str, str], seeds: str, metrics: dict[str, Any]) -> None:
        """Write report.html unless it is there; `_evaluate` deletes it when figures change."""
        data, path = self.config.data, self._at("report.html")
        note = progress("report", path)
        if storage.exists(path) and not self._forced("report"):
            note("up to date")
            return
        note("running")
        from brnf.evaluation.gallery import gallery_rows
        from brnf.evaluation.report import write_report

        shown = data.score_split or data.label_splits[0]
        gallery = gallery_rows(
            shards[shown], labels.get("base"), labels[shown], seeds if shown == data.train_split else None
        )
        write_report(
            path,
            title=f"Masks of {shown} from tags alone",
            summary=self._summary(metrics),
            table={method: metrics[method] for method in ("base", "brnf") if method in metrics},
            gain=metrics.get("gain", {}),
            activity={**metrics["activity"], "sampled_features": metrics["sampled_features"]},
            curves={method: read_lines(self._at(method, "metrics.jsonl")) for method in ("base", "brnf")},
            gallery=gallery,
            notes=[f"Base labels are read out as BRNF's, but from the {self.config.seeds.maps} maps, like the seeds."],
        )
        note("done")

    def _summary(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What the report says of the run."""
        return {
            "config_hash": metrics["config_hash"],
            "random_seed": metrics["random_seed"],
            "code_version": code_version(),
            "backbone": f"{self.config.backbone.name}, weights {self.config.backbone.weights}",
            "trained_on": self.config.data.train_split,
            "labelled": self.config.data.label_splits,
            "strict_weak": self.config.strict_weak,
            "quarantine": {outcome.out: outcome.refused for outcome in self.outcomes if outcome.refused},
        }


def read_lines(path: str) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; none if there is no such file."""
    return [json.loads(line) for line in storage.read_bytes(path).splitlines()] if storage.exists(path) else []
