"""The pipeline: all stages chained, their scores and their report; and the sweep over its stage brnf."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import yaml

from brnf.chain import Chain, progress
from brnf.config import as_dict, config_hash, overlay
from brnf.data import storage
from brnf.stage import Outcome, code_version, content_hash, manifest_hash
from brnf.stages import VERSIONS, label_stage, train_stage, tune_stage
from brnf.tune_space import TuneSpace


@dataclass(kw_only=True)
class Pipeline(Chain):
    """All stages, from a data set to labels, metrics.json and report.html in one directory."""

    def run(self) -> dict[str, Any]:
        """Bring everything up to date and return what metrics.json holds.

        Raises:
            ValueError: If the configuration or an input makes a stage impossible; says which and what to do.
        """
        with self:
            shards = self.prepare(self.config.data.label_splits)  # the score split is among them
            train = shards[self.config.data.train_split]
            base, seeds = self.base_and_seeds(train)
            seeds = self.guiding_seeds(train, base, seeds)
            brnf = self.bring(
                train_stage(self.config, method="brnf", shards=train, seeds=seeds, base=base, out=self.at("brnf"))
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
        with self:
            shards = self.prepare((space.objective.split,))
            train = shards[self.config.data.train_split]
            base, seeds = self.base_and_seeds(train)
            seeds = self.guiding_seeds(train, base, seeds)
            found = self.bring(
                tune_stage(
                    self.config,
                    space,
                    shards=train,
                    seeds=seeds,
                    base=base,
                    scored=shards[space.objective.split],
                    out=self.at("trials"),
                )
            ).manifest
        # Masks chose it: the reports of whoever runs it have to say so.
        best = overlay(self.config, {**found["trials"][0]["values"], "strict_weak": False})
        storage.write_bytes(self.at("best.yaml"), yaml.safe_dump(as_dict(best), sort_keys=False).encode())
        return found

    def _label(self, base: str, brnf: str, shards: dict[str, str]) -> dict[str, str]:
        """Labels of BRNF for every split, and of the base for the scored one (key "base"), inside its directory."""
        scored, labels = self.config.data.score_split, {}
        for split in self.config.data.label_splits:
            stage = label_stage(self.config, run=brnf, shards=shards[split], out=self.at("labels", split))
            labels[split] = self.bring(stage).out
        if scored:
            seeds = self.config.seeds
            read_out = dataclasses.replace(
                self.config.label, maps=seeds.maps, background_factor=seeds.background_factor
            )
            config = dataclasses.replace(self.config, label=read_out)
            stage = label_stage(config, run=base, shards=shards[scored], out=storage.join(base, "labels", scored))
            labels["base"] = self.bring(stage).out
        return labels

    def _evaluate(self, labels: dict[str, str], shards: dict[str, str], brnf: Outcome) -> dict[str, Any]:
        """Score base and BRNF on the same images and write metrics.json."""
        data, path = self.config.data, self.at("metrics.json")
        note = progress("evaluate", path)
        inputs = {role: manifest_hash(directory) for role, directory in [*labels.items(), ("run", brnf.out)]}
        key = content_hash([VERSIONS["evaluate"], inputs, list(data.score_classes)])
        if storage.exists(path) and not self.forced("evaluate"):
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
        storage.delete(self.at("report.html"))  # it shows the figures of before
        storage.write_json(path, metrics)
        note("done")
        return metrics

    def _report(self, labels: dict[str, str], shards: dict[str, str], seeds: str, metrics: dict[str, Any]) -> None:
        """Write report.html unless it is there; `_evaluate` deletes it when figures change."""
        data, path = self.config.data, self.at("report.html")
        note = progress("report", path)
        if storage.exists(path) and not self.forced("report"):
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
            curves={method: read_lines(self.at(method, "metrics.jsonl")) for method in ("base", "brnf")},
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
