"""The commands of one stage each, and those that need none: sample, evaluate, export."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from brnf.config import ComputeConfig, DataConfig, MasksConfig, ReadOutConfig, RunConfig, load_recipe
from brnf.data import storage
from brnf.data.schema import MANIFEST
from brnf.export import FormatName
from brnf.stage import Outcome, Stage, run_stage
from brnf.stages import (
    export_stage,
    irn_labels_stage,
    irn_stage,
    label_stage,
    prepare_stage,
    run_config,
    seeds_stage,
    train_stage,
)
from brnf.tables import class_table, gain_table
from brnf.verbs.base import Recipe, RecipeVerb, Result, StageVerb, Switch, Verb


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
class Irn(StageVerb):
    """Train a network that finds the boundaries of objects, for masks refined by a random walk (--label.refine walk).

    Base seeds and a dense CRF tell which cells are surely of a class, written to OUT/labels (needs the extra `crf`);
    pairs of such cells, of one class or of two, teach the network, OUT, where boundaries run. The same command goes on
    after an interruption. Then: brnf label --label.refine walk --label.walk.boundaries OUT
    """

    shards: str
    """Shards to train on. Their masks are not read."""
    seeds: str
    """Base seeds of these shards, from `brnf seeds`."""
    out: str
    """Directory of the run; the classes of cells go to its folder labels."""
    config: str | None = None
    """A recipe: the name of one in brnf/recipes or a YAML file; none takes the one that the seeds were made with."""
    settings: Recipe = field(default_factory=RunConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        if "config" in flags:
            return {"settings": load_recipe(flags["config"])}
        return {"settings": run_config(flags["seeds"], "--seeds", "brnf seeds")} if "seeds" in flags else {}

    def run(self) -> Result:
        given, labels = {"shards": self.shards}, storage.join(self.out, "labels")
        with contextlib.ExitStack() as cluster:
            first = self.bring_on(cluster, irn_labels_stage(self.settings, **given, seeds=self.seeds, out=labels))
            second = self.bring_on(cluster, irn_stage(self.settings, **given, labels=labels, out=self.out))
        values = second.values | {"refused": first.values["refused"]}
        return Result(values=values, lines=second.lines, outcomes=[*first.outcomes, *second.outcomes])


@dataclass(frozen=True, kw_only=True)
class Label(StageVerb):
    """Write a mask for every image: palette PNGs and a manifest.

    Killed at any point, the same command goes on and ends with the same bytes.
    """

    run_path: Annotated[str, tyro.conf.arg(name="run")]
    """Directory of a trained run, of either method."""
    shards: str
    """Shards to label; with --images, the directory that gets them."""
    out: str
    """Directory of the labels."""
    images: str | None = None
    """Folder or URI of images to make the shards of, with --tags: `prepare folder` and labelling in one command."""
    tags: str | None = None
    """CSV of file names (below --images) and tags, as `brnf prepare folder` takes it; classes are those of the run."""
    config: str | None = None
    """Recipe whose `label`, `masks` and `compute` to use; none takes the run's own."""
    label: ReadOutConfig = field(default_factory=ReadOutConfig)
    masks: Annotated[MasksConfig, tyro.conf.arg(name="")] = field(default_factory=MasksConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @classmethod
    def defaults(cls, flags: dict[str, str]) -> dict[str, Any]:
        settings = own_config(flags)
        return {name: getattr(settings, name) for name in ("label", "masks", "compute")} if settings else {}

    def run(self) -> Result:
        settings = load_recipe(self.config) if self.config else run_config(self.run_path)
        settings = dataclasses.replace(settings, label=self.label, masks=self.masks, compute=self.compute)
        prepared = [self.bring(self.prepare())] if self.images else []
        labelled = self.bring(label_stage(settings, run=self.run_path, shards=self.shards, out=self.out))
        outcomes = [outcome for result in [*prepared, labelled] for outcome in result.outcomes]
        return dataclasses.replace(labelled, outcomes=outcomes)

    def prepare(self) -> Stage:
        """The stage that makes the shards of the folder of images."""
        if not self.tags:
            raise ValueError("--images needs --tags FILE.csv, which says what is in them (file,tags; cat;dog)")
        classes = f"{self.shards.rstrip('/')}.classes.txt"
        names = storage.read_json(storage.join(self.run_path, MANIFEST))["class_names"]
        storage.write_bytes(storage.absolute(classes), "\n".join(names[1:]).encode())
        config = RunConfig(data=DataConfig(kind="folder", tags=self.tags, classes=classes))
        return prepare_stage(config, root=str(self.images), split="all", out=self.shards)


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


def own_config(flags: dict[str, str]) -> RunConfig | None:
    """The recipe named by --config, else the configuration of the run named by --run, if either is given."""
    if "config" in flags:
        return load_recipe(flags["config"])
    return run_config(flags["run"]) if "run" in flags else None
