"""The commands that chain stages: pipeline, sweep, ablation, bias curve, demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from brnf.ablation import Ablation
from brnf.arms import chosen_arms
from brnf.bias_curve import DIALS, BiasCurve
from brnf.config import RunConfig, load_recipe
from brnf.data import storage
from brnf.pipeline import Pipeline
from brnf.stage import PipelineStage
from brnf.tables import ablation_table, bias_table, comparison, trial_table
from brnf.tune_space import load_space
from brnf.verbs.base import Recipe, RecipeVerb, Result, Verb
from brnf.verbs.stages import Sample, render


@dataclass(frozen=True, kw_only=True)
class RunPipeline(RecipeVerb):
    """All stages in one: data set -> shards, base, seeds, brnf, labels, metrics.json, report.html.

    What is up to date is left alone. Stop it and start it at any point.
    """

    root: str
    """The data set: a VOC2012 directory or COCO tree; for data.kind folder the folder of images."""
    out: str
    """Directory of everything the run writes."""
    force_from: PipelineStage | None = None
    """Do this stage and every later one again."""
    address: str | None = None
    """Ray cluster to join, such as "auto" or ray://HOST:10001; none starts a local one."""
    def run(self) -> Result:
        pipeline = Pipeline(
            config=self.settings, root=self.root, out=self.out, address=self.address, force_from=self.force_from
        )
        return pipeline_result(pipeline)


@dataclass(frozen=True, kw_only=True)
class Tune(RecipeVerb):
    """Search BRNF's fields with Ray Tune; the best configuration becomes a recipe, OUT/best.yaml.

    Trials share shards, base and seeds, which OUT gets as from `brnf pipeline`; so does a pipeline run from best.yaml
    with the same --out. Stopped and started again, no finished epoch of a trial is repeated.
    """

    space: str
    """YAML with parameters, objective and budget; tune_spaces/ has examples."""
    trials: int | None = None
    """Stands in for the file's budget.trials."""
    epochs: int | None = None
    """Stands in for the file's budget.epochs."""
    root: str
    """The data set: a VOC2012 directory or COCO tree; for data.kind folder the folder of images."""
    out: str
    """Directory of everything the sweep writes."""
    address: str | None = None
    """Ray cluster to join, such as "auto" or ray://HOST:10001; none starts a local one."""
    def run(self) -> Result:
        space = load_space(self.space).with_budget(trials=self.trials, epochs=self.epochs)
        pipeline = Pipeline(config=self.settings, root=self.root, out=self.out, address=self.address)
        found = pipeline.tune(space)
        best = storage.join(pipeline.out, "best.yaml")
        lines = [*trial_table(found["trials"]), f"best: {best} (chosen on the masks of {space.objective.split})"]
        return Result(values=found | {"best": best}, lines=lines, outcomes=pipeline.outcomes)


@dataclass(frozen=True, kw_only=True)
class Ablate(RecipeVerb):
    """What each part of the method adds: base, guidance, calibration, BSDNF, contrast, sampled features.

    All arms share shards, base and seeds and train as many steps. Each is read in the same ways, the best by mIoU on
    --choose-split, and reported on data.score-split, with intervals from a paired bootstrap over images. Stopped and
    started again, nothing finished is repeated; OUT may be that of a pipeline, whose stages are then used.
    """

    arms: tuple[str, ...] = ()
    """Run these only, beside base: longer, guidance, oracle, clean, calibration, likelihood, ratio, denoise, contrast,
    full."""
    random_seeds: tuple[int, ...] = ()
    """The first is run with every arm, others with base, guidance and full; none means the recipe's."""
    choose_split: str = "train"
    """Split whose masks choose how each run is read. Not the one that is reported on."""
    root: str
    """The data set: a VOC2012 directory or COCO tree; for data.kind folder the folder of images."""
    out: str
    """Directory of everything the ablation writes."""
    address: str | None = None
    """Ray cluster to join, such as "auto" or ray://HOST:10001; none starts a local one."""
    def run(self) -> Result:
        ablation = Ablation(
            config=self.settings,
            root=self.root,
            out=storage.absolute(self.out),
            arms=chosen_arms(self.arms),
            random_seeds=self.random_seeds or (self.settings.random_seed,),
            choose_split=self.choose_split,
            address=self.address,
        )
        found = ablation.run()
        lines = [*ablation_table(found), f"plot: {storage.join(ablation.out, 'ablation.png')}"]
        return Result(values=found, lines=lines, outcomes=ablation.outcomes)


@dataclass(frozen=True, kw_only=True)
class SampleVerb(Verb):
    """What every command that renders the sample and follows the recipe `demo` takes."""

    address: str | None = None
    """Ray cluster to join; none starts a local one."""
    settings: Recipe = field(default_factory=RunConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        return {"settings": load_recipe("demo")}


@dataclass(frozen=True, kw_only=True)
class Bias(SampleVerb):
    """How masks suffer as classes come with their own context more often, on rendered scenes: curves over the dial.

    For each dial: base, guidance alone, the full method, and guidance by true masks. Goes on where it stopped.
    """

    out: str
    """Directory of everything; gets bias.json and bias.png."""
    dials: tuple[float, ...] = DIALS
    """Probabilities that an object stands on the context of its class."""

    def run(self) -> Result:
        curve = BiasCurve(
            config=self.settings, out=storage.absolute(self.out), dials=self.dials, address=self.address
        )
        found = curve.run()
        lines = [*bias_table(found["points"]), f"plot: {storage.join(curve.out, 'bias.png')}"]
        return Result(values=found, lines=lines, outcomes=curve.outcomes)


@dataclass(frozen=True, kw_only=True)
class Demo(SampleVerb):
    """The whole pipeline on the built-in sample with a tiny network: a few minutes on two cores, no network needed."""

    out: str
    """Directory of everything the run writes; the sample goes to OUT/sample, the pipeline to OUT/run."""
    bias: float = Sample.bias
    """Probability that an object of the sample stands on the context of its class."""

    def run(self) -> Result:
        root, out = storage.join(self.out, "sample"), storage.join(self.out, "run")
        render(Sample(out=root, bias=self.bias, random_seed=self.settings.random_seed))
        return pipeline_result(Pipeline(config=self.settings, root=root, out=out, address=self.address))


def pipeline_result(pipeline: Pipeline) -> Result:
    """Run a pipeline and show base against BRNF."""
    metrics = pipeline.run()
    out = pipeline.out
    lines = comparison(metrics) if "brnf" in metrics else []
    lines.append(f"report: {storage.join(out, 'report.html')}")
    paths = {"report": storage.join(out, "report.html"), "out": out}
    return Result(values=metrics | paths, lines=lines, outcomes=pipeline.outcomes)
