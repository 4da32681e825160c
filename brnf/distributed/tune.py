"""Ray Tune searches BRNF's fields: every trial is a Ray Train run over the same shards and base seeds.

Samples are drawn before Tune starts, and each epoch of a trial leaves its score in a file of its own. A sweep that was
killed is run again from the beginning, and finds them: what is done is not done twice, and nothing has to be unpickled.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from brnf.config import RunConfig
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.distributed.label import label
from brnf.distributed.session import session
from brnf.distributed.train import train
from brnf.evaluation.evaluate import evaluate
from brnf.tune_space import TuneSpace

TRIAL_CPUS = 0.01
"""The trial itself only waits; the workers and actors that it starts take theirs."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything a trial needs."""

    config: RunConfig
    space: TuneSpace
    samples: list[dict[str, Any]]
    """Values by dotted field, one a trial."""
    shards: str
    """Shards to train on."""
    seeds: str
    """Their base seeds."""
    base: str
    """The base run."""
    scored: str
    """Shards that trials are scored on."""
    out: str
    """Gets a directory a trial."""

    def directory(self, number: int) -> str:
        """Where a trial writes."""
        return storage.join(self.out, f"trial-{number:03d}")

    def failure_file(self, number: int) -> str:
        """Why a trial ended early, if it did."""
        return storage.join(self.directory(number), "failed.json")

    def score_file(self, number: int, epoch: int) -> str:
        """What an epoch of a trial came to."""
        return storage.join(self.directory(number), f"epoch-{epoch:02d}.json")


def search(sweep: Sweep) -> dict[str, Any]:
    """Run all trials, best first in the manifest; goes on where it stopped.

    Args:
        sweep: Recipe, space and inputs.

    Returns:
        The manifest: `trials` with number, values, epochs, miou, mean_fp, mean_fn, seconds; failed trials in
        `quarantine`, with the reason.

    Raises:
        ValueError: If no trial came to a score.
    """
    budget, objective = sweep.space.budget, sweep.space.objective
    with session(), tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, sweep=sweep), {"CPU": TRIAL_CPUS}),
            param_space={"number": tune.grid_search(list(range(len(sweep.samples))))},
            tune_config=tune.TuneConfig(
                metric=objective.metric,
                mode="max" if objective.sign > 0 else "min",
                max_concurrent_trials=budget.concurrent,
                reuse_actors=False,
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=budget.epochs,
                    grace_period=min(budget.grace_epochs, budget.epochs),
                    reduction_factor=budget.reduction_factor,
                ),
            ),
            run_config=tune.RunConfig(name="sweep", storage_path=scratch, verbose=0, callbacks=[Say(sweep)]),
        )
        tuner.fit()
    failed = failures(sweep)
    manifest = {
        "kind": "trials",
        "objective": {"metric": objective.metric, "split": objective.split},
        "trials": ranking(sweep),
        "quarantine": failed,
    }
    if not manifest["trials"]:
        raise ValueError(f"no trial came to a score: {failed[0]['reason'] if failed else 'Tune started none'}")
    storage.write_json(storage.join(sweep.out, MANIFEST), manifest)
    return manifest


def run_trial(spec: dict[str, Any], sweep: Sweep) -> None:
    """Train one sample, an epoch at a time, and report each epoch's score."""
    failure = sweep.failure_file(spec["number"])
    storage.delete(failure)
    try:
        for epoch in range(1, sweep.space.budget.epochs + 1):
            tune.report(score_epoch(sweep, spec["number"], epoch))
    except Exception as error:
        storage.write_json(failure, {"reason": f"{type(error).__name__}: {error}"})
        raise


def score_epoch(sweep: Sweep, number: int, epoch: int) -> dict[str, Any]:
    """Train a trial to the end of an epoch and score it, unless that has been done."""
    path = sweep.score_file(number, epoch)
    if storage.exists(path):
        return storage.read_json(path)
    config = sweep.space.trial_config(sweep.config, sweep.samples[number])
    config = with_share_of_cluster(config, sweep.space.budget.concurrent)
    inputs = {"shards": sweep.shards, "seeds": sweep.seeds, "base": sweep.base}
    out, started = sweep.directory(number), time.monotonic()
    train(config, method="brnf", **inputs, out=out, until_epoch=epoch)
    labels = storage.join(out, f"labels-{epoch:02d}")
    label(config.label, config.compute, run=out, shards=sweep.scored, out=labels)
    scores = evaluate(labels, sweep.scored, config.data.score_classes or None)
    storage.delete(labels)
    named = {name: scores[name] for name in ("miou", "mean_fp", "mean_fn")}
    row = {"epoch": epoch, **named, "seconds": round(time.monotonic() - started, 1)}
    storage.write_json(path, row)
    return row


def with_share_of_cluster(config: RunConfig, concurrent: int) -> RunConfig:
    """Divide the cluster's cores among the trials that run at once; one core each stays free for reading."""
    if concurrent == 1:
        return config
    cpus = int(ray.cluster_resources().get("CPU", 1)) // concurrent - 1
    workers = config.compute.num_workers
    if cpus < workers:
        raise ValueError(
            f"budget.concurrent is {concurrent}, but the cluster has too few cores for as many trials of {workers} "
            "workers, each trial with a core to read with: lower it"
        )
    return replace(config, compute=replace(config.compute, cpus_per_worker=cpus // workers, label_actors=cpus))


def failures(sweep: Sweep) -> list[dict[str, str]]:
    """Trials that ended early, with the reason."""
    files = {number: sweep.failure_file(number) for number in range(len(sweep.samples))}
    return [
        {"id": f"trial {number}", "reason": storage.read_json(file)["reason"]}
        for number, file in files.items()
        if storage.exists(file)
    ]


def ranking(sweep: Sweep) -> list[dict[str, Any]]:
    """Trials with a score, best first; each by the last epoch that it came to."""
    rows = []
    for number, values in enumerate(sweep.samples):
        files = [sweep.score_file(number, epoch) for epoch in range(1, sweep.space.budget.epochs + 1)]
        scores = [storage.read_json(file) for file in files if storage.exists(file)]
        if scores:
            seconds = round(sum(score["seconds"] for score in scores), 1)
            rows.append({"number": number, **scores[-1], "seconds": seconds, "values": values})
    objective = sweep.space.objective
    return sorted(rows, key=lambda row: (-row["epoch"], -objective.sign * row[objective.metric]))


class Say(tune.Callback):
    """Prints each score to stderr as it comes."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Called by Tune on the driver."""
        number, epochs = result["config"]["number"], self.sweep.space.budget.epochs
        scores = "  ".join(f"{name} {100 * result[name]:.1f}" for name in ("miou", "mean_fp", "mean_fn"))
        values = json.dumps(self.sweep.samples[number])
        line = f"  trial {number} of {len(self.sweep.samples)}  epoch {result['epoch']}/{epochs}  {scores}  {values}"
        print(line, file=sys.stderr, flush=True)
