"""The commands: flags with their explanation, one call a stage, what there is to show. Nothing is computed here."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from brnf.ablation import Ablation
from brnf.arms import chosen_arms
from brnf.bias_curve import DIALS, BiasCurve
from brnf.chain import export_stage, label_stage, prepare_stage, progress, run_config, seeds_stage, train_stage
from brnf.config import ComputeConfig, DataConfig, ReadOutConfig, RunConfig, load_recipe
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.export import FormatName
from brnf.pipeline import Pipeline
from brnf.presets import Preset, preset_fields
from brnf.stage import Outcome, PipelineStage, Stage, run_stage
from brnf.tables import ablation_table, bias_table, class_table, comparison, gain_table, trial_table
from brnf.tune_space import load_space

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without a value; there is no --no-... of it."""
Recipe = Annotated[RunConfig, tyro.conf.arg(name="")]
"""Every field of a run as a dotted flag, with the recipe's value as default."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command has to show."""

    values: dict[str, Any]
    """For --json."""
    lines: list[str] = field(default_factory=list)
    """For people."""
    outcomes: Sequence[Outcome] = ()
    """The stages behind it, whose refused inputs are counted in the last lines."""


@dataclass(frozen=True, kw_only=True)
class Verb(abc.ABC):
    """What every command takes."""

    json: Switch = False
    """Print one line of JSON on stdout and nothing else there."""
    debug: Switch = False
    """Show the traceback of an error (BRNF_DEBUG=1 does too)."""

    @abc.abstractmethod
    def run(self) -> Result:
        """Do it."""

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        """Defaults that depend on other flags, such as those a recipe gives.

        Args:
            flags: Values of the flags given, by name without dashes, before they are parsed.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class StageVerb(Verb):
    """What every command that runs one stage takes."""

    address: str | None = None
    """Ray cluster to join, such as "auto" or ray://HOST:10001; none starts a local one."""
    force: Switch = False
    """Delete what an earlier command wrote to the output directory and start anew."""

    def bring(self, stage: Stage) -> Result:
        """Bring one stage up to date on Ray."""
        note = progress(stage.name, stage.out)
        with contextlib.ExitStack() as stack:

            def begin() -> None:
                from brnf.distributed.session import session

                note("running")
                stack.enter_context(session(self.address))

            outcome = run_stage(stage, force=self.force, begin=begin)
        note("done" if outcome.ran else "up to date")
        values = {"stage": stage.name, "out": stage.out, "ran": outcome.ran, "refused": outcome.refused}
        return Result(values=values, lines=[f"{stage.name}: {stage.out}"], outcomes=[outcome])


@dataclass(frozen=True, kw_only=True)
class Sample(Verb):
    """Render a small data set with a dial for co-occurrence bias, in VOC layout.

    Textured objects of six classes on textured grounds. The same flags always give the same bytes.
    """

    out: str
    """Directory to write the tree to."""
    bias: float = 0.9
    """Probability that an object stands on the context of its class (boat on water, train on rails)."""
    random_seed: int = 0
    """Draws the scenes."""
    num_train: int = 240
    """Images of split train."""
    num_val: int = 60
    """Images of split val."""

    def run(self) -> Result:
        render(self)
        size = {"train": self.num_train, "val": self.num_val}
        return Result(
            values={"out": self.out, "bias": self.bias, "random_seed": self.random_seed, "images": size},
            lines=[f"{self.num_train} images of train and {self.num_val} of val in {self.out}"],
        )


def render(sample: Sample) -> None:
    """Render the sample, with the generator's own image size."""
    from brnf.data.scenes import render_sample

    render_sample(
        sample.out,
        bias=sample.bias,
        random_seed=sample.random_seed,
        num_train=sample.num_train,
        num_val=sample.num_val,
    )


@dataclass(frozen=True, kw_only=True)
class PrepareVerb(StageVerb):
    """What every command that writes shards takes."""

    shards: str
    """Directory to write."""
    unit_rows: Annotated[int, tyro.conf.arg(name="data.unit-rows")] = DataConfig.unit_rows
    """Images a unit (Parquet row group): the atom of reading, shuffling, labelling and resuming."""
    part_rows: Annotated[int, tyro.conf.arg(name="data.part-rows")] = DataConfig.part_rows
    """Images a part (Parquet file)."""

    def write(self, root: str, split: str, **data: Any) -> Result:
        """Bring the shards of a split up to date."""
        config = RunConfig(data=DataConfig(unit_rows=self.unit_rows, part_rows=self.part_rows, **data))
        return self.bring(prepare_stage(config, root=root, split=split, out=self.shards))


@dataclass(frozen=True, kw_only=True)
class PrepareVoc(PrepareVerb):
    """VOC tree -> shards: Parquet with image, tags and, for scoring only, masks.

    Tags come from Annotations/*.xml, else from cls_labels.npy, else from the masks; the manifest says which.
    """

    root: str
    """The VOCdevkit/VOC2012 directory, or any tree like it; a classes.txt there replaces VOC's class names."""
    split: str
    """ImageSets/Segmentation/{split}.txt; masks from SegmentationClass, for train_aug from SegmentationClassAug."""

    def run(self) -> Result:
        return self.write(self.root, self.split, kind="voc")


@dataclass(frozen=True, kw_only=True)
class PrepareCoco(PrepareVerb):
    """COCO tree -> shards, from an instances JSON or from masks in VOC's layout.

    Image-level labels come from annotations/instances_{split}.json if it is there, and masks are drawn from it, the
    largest object first and crowds ignored; else both come from SegmentationClass/{split}/*.png (0..80, 255 ignored).
    """

    root: str
    """Directory that holds JPEGImages/{split} or {split}, and annotations or SegmentationClass."""
    split: str
    """train2014, val2014 or any other that the tree has."""

    def run(self) -> Result:
        return self.write(self.root, self.split, kind="coco")


@dataclass(frozen=True, kw_only=True)
class PrepareFolder(PrepareVerb):
    """Your own images and a CSV of tags -> shards.

    The CSV begins with the header `file,tags`; tags of one image are separated by `;` (photos/a.jpg,cat;dog).
    """

    images: str
    """Folder of JPEG or PNG files."""
    tags: str
    """CSV of file names (below --images) and tags."""
    classes: str
    """Text file, one class name a line; the background is not listed."""
    split: str = "all"
    """Name of this set of images in the manifest."""

    def run(self) -> Result:
        return self.write(self.images, self.split, kind="folder", tags=self.tags, classes=self.classes)


@dataclass(frozen=True, kw_only=True)
class RecipeVerb(Verb):
    """What every command that follows a recipe takes."""

    config: str
    """A recipe: the name of one in brnf/recipes (demo, voc_resnet50, ...) or a YAML file."""
    preset: Preset = "recommended"
    """literal lays the method as the paper's figure draws it over the recipe; recommended leaves it as it is."""
    settings: Recipe = field(default_factory=RunConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        if "config" not in flags:
            return {}
        return {"settings": load_recipe(flags["config"], preset_fields(flags.get("preset", "recommended")))}


@dataclass(frozen=True, kw_only=True)
class Train(RecipeVerb, StageVerb):
    """Train the base network (--method sipe) or BRNF (--method brnf) on Ray Train.

    The same command goes on after an interruption, from the last checkpoint.
    """

    method: Literal["sipe", "brnf"]
    """sipe is the base that gives the seeds; brnf is guided by them."""
    shards: str
    """Shards to train on. Their masks are not read."""
    out: str
    """Directory of the run."""
    seeds: str | None = None
    """Base seeds of these shards; brnf needs them."""
    base: str | None = None
    """The base run; needed where brnf.init is base."""

    def run(self) -> Result:
        stage = train_stage(
            self.settings, method=self.method, shards=self.shards, seeds=self.seeds, base=self.base, out=self.out
        )
        return self.bring(stage)


@dataclass(frozen=True, kw_only=True)
class Seeds(StageVerb):
    """Read the base network out over its training images: base seeds, a sidecar of the shards."""

    run_path: Annotated[str, tyro.conf.arg(name="run")]
    """Directory of the base run."""
    shards: str
    """Shards to read out."""
    out: str
    """Directory of the seeds."""
    config: str | None = None
    """Recipe whose `seeds` and `compute` to use; none takes the run's own."""
    seeds: ReadOutConfig = field(default_factory=ReadOutConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        settings = own_config(flags)
        return {"seeds": settings.seeds, "compute": settings.compute} if settings else {}

    def run(self) -> Result:
        settings = load_recipe(self.config) if self.config else run_config(self.run_path)
        settings = dataclasses.replace(settings, seeds=self.seeds, compute=self.compute)
        return self.bring(seeds_stage(settings, run=self.run_path, shards=self.shards, out=self.out))


@dataclass(frozen=True, kw_only=True)
class Label(StageVerb):
    """Write a mask for every image: palette PNGs and a manifest.

    Killed at any point, the same command goes on and ends with the same bytes.
    """

    run_path: Annotated[str, tyro.conf.arg(name="run")]
    """Directory of a trained run, of either method."""
    shards: str
    """Shards to label."""
    out: str
    """Directory of the labels."""
    config: str | None = None
    """Recipe whose `label` and `compute` to use; none takes the run's own."""
    label: ReadOutConfig = field(default_factory=ReadOutConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        settings = own_config(flags)
        return {"label": settings.label, "compute": settings.compute} if settings else {}

    def run(self) -> Result:
        settings = load_recipe(self.config) if self.config else run_config(self.run_path)
        settings = dataclasses.replace(settings, label=self.label, compute=self.compute)
        return self.bring(label_stage(settings, run=self.run_path, shards=self.shards, out=self.out))


@dataclass(frozen=True, kw_only=True)
class Evaluate(Verb):
    """Score labels against masks: mIoU, over-activation (FP) and under-activation (FN), overall and by class."""

    labels: str
    """Directory of the labels."""
    shards: str
    """Shards of the same images, with masks."""
    classes: str | None = None
    """Comma-separated: mIoU over these and background, mean FP and FN over these; none means all."""
    against: str | None = None
    """Other labels of the same images: also says how much better these are, with intervals (paired bootstrap)."""

    def run(self) -> Result:
        from brnf.evaluation.evaluate import compare, evaluate

        classes = tuple(name.strip() for name in self.classes.split(",")) if self.classes else None
        scores = evaluate(self.labels, self.shards, classes)
        lines = class_table(scores)
        if self.against:
            scores["gain"] = compare(self.labels, self.against, self.shards, classes)
            lines += gain_table(scores["gain"], self.against)
        manifest = storage.read_json(storage.join(self.labels, MANIFEST))
        outcome = Outcome(stage="label", out=self.labels, manifest=manifest, ran=False)
        return Result(values=scores, lines=lines, outcomes=[outcome])


@dataclass(frozen=True, kw_only=True)
class Export(Verb):
    """Labels -> the format of another tool: COCO JSON, Label Studio tasks, a VOC tree, Parquet, NumPy arrays."""

    labels: str
    """Directory of the labels."""
    out: str
    """Directory to write."""
    format: FormatName
    """coco: annotations.json, run-length encoded. label-studio: tasks.json with brush predictions, labelling.xml.
    voc: SegmentationClass and ImageSets. parquet: masks as PNG in tables. npz: one array `mask` an image."""
    image: str = "{id}.jpg"
    """Where the tool finds an image, {id} for its id; for Label Studio perhaps /data/local-files/?d=photos/{id}.jpg."""
    force: Switch = False
    """Delete what an earlier command wrote to the output directory and start anew."""

    def run(self) -> Result:
        stage = export_stage(labels=self.labels, format=self.format, image=self.image, out=self.out)
        outcome = run_stage(stage, force=self.force)
        manifest = outcome.manifest
        values = {"out": stage.out, "format": self.format, "images": manifest["num_images"], "ran": outcome.ran}
        lines = [f"{manifest['num_images']} images as {self.format} in {stage.out}"]
        return Result(values=values, lines=lines, outcomes=[outcome])


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
    """Run these only, beside base: longer, guidance, oracle, clean, calibration, likelihood, ratio, contrast, full."""
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


def own_config(flags: dict[str, str]) -> RunConfig | None:
    """The recipe named by --config, else the configuration of the run named by --run, if either is given."""
    if "config" in flags:
        return load_recipe(flags["config"])
    return run_config(flags["run"]) if "run" in flags else None


def pipeline_result(pipeline: Pipeline) -> Result:
    """Run a pipeline and show base against BRNF."""
    metrics = pipeline.run()
    out = pipeline.out
    lines = comparison(metrics) if "brnf" in metrics else []
    lines.append(f"report: {storage.join(out, 'report.html')}")
    paths = {"report": storage.join(out, "report.html"), "out": out}
    return Result(values=metrics | paths, lines=lines, outcomes=pipeline.outcomes)


VERBS: dict[str, type[Verb]] = {
    "demo": Demo,
    "pipeline": RunPipeline,
    "tune": Tune,
    "ablate": Ablate,
    "bias": Bias,
    "sample": Sample,
    "prepare voc": PrepareVoc,
    "prepare coco": PrepareCoco,
    "prepare folder": PrepareFolder,
    "train": Train,
    "seeds": Seeds,
    "label": Label,
    "evaluate": Evaluate,
    "export": Export,
}
