"""Configuration of a run: frozen dataclasses, a docstring under each field, one place for every default.

A resolved configuration is a recipe (brnf/recipes/*.yaml), overlaid by a tune sample, overlaid by the command
line. Unknown fields, wrong types and impossible values are refused with the dotted name of the field.

Sources named in the docstrings: "SIPE" chenqi1126/SIPE (CVPR 2022), "DDFP" Gavinwxy/DDFP, "PPC" usr922/wseg,
"FlowGMM" izmailovpavel/flowgmm. The paper publishes no hyperparameter; "ours" marks a choice of this project.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pydantic
import yaml

FORBID_UNKNOWN = pydantic.ConfigDict(extra="forbid")

ReadOut = Literal["classifier", "prototype", "posterior", "fusion"]
Refiner = Literal["crf", "guided", "par", "walk"]
CrfPreset = Literal["irn", "clip_es", "deeplab", "afa"]


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raise a ValueError that names field, value and remedy unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value!r}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set, which splits."""

    __pydantic_config__ = FORBID_UNKNOWN

    kind: Literal["voc", "folder", "coco"] = "voc"
    """Layout under --root: a VOCdevkit/VOC2012 tree, a folder of images with a CSV of tags, or a COCO tree."""
    train_split: str = "train_aug"
    """Split to train on (ImageSets/Segmentation/{split}.txt). Its masks are never read."""
    score_split: str | None = "val"
    """Split whose masks the labels are scored against; none skips evaluation."""
    label_splits: tuple[str, ...] = ("val",)
    """Splits that the pipeline labels with the trained BRNF; has to contain score_split."""
    score_classes: tuple[str, ...] = ()
    """Classes (with background) that mIoU averages over; empty means all."""
    tags: str | None = None
    """kind folder: CSV of file name and tags."""
    classes: str | None = None
    """kind folder: text file, one class name a line."""
    unit_rows: int = 32
    """Images a unit (Parquet row group): the atom of reading, shuffling, labelling and resuming."""
    part_rows: int = 256
    """Images a part (Parquet file); a multiple of unit_rows."""

    def __post_init__(self) -> None:
        require(self.unit_rows >= 1, "data.unit_rows", self.unit_rows, "give 1 or more; 32 to 64 is usual")
        require(
            self.part_rows % self.unit_rows == 0 and self.part_rows > 0,
            "data.part_rows", self.part_rows, f"give a multiple of data.unit_rows ({self.unit_rows})",
        )
        missing = self.score_split is not None and self.score_split not in self.label_splits
        require(not missing, "data.label_splits", self.label_splits, f"add the score_split {self.score_split!r} to it")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The classification network whose feature maps everything else reads."""

    __pydantic_config__ = FORBID_UNKNOWN

    name: str = "resnet50"
    """A timm model with `features_only` support."""
    weights: str = "imagenet"
    """"imagenet" (timm's, downloaded on the driver before Ray starts), "offline" (from the package of the extra
    `brnf[offline]`, tf_efficientnet_lite0 only), "none" (random), or the path of a state dict."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides after the mean; 0.5 for both gives the x/127.5-1 of the TensorFlow models."""
    output_stride: int = 16
    """Pixels of the image a cell of the last feature map stands for."""
    side_channels: tuple[int, int, int, int] = (128, 128, 256, 256)
    """Channels that each of the last four levels gives to the hierarchical feature (SIPE: 768 in all)."""
    detach_levels: int = 2
    """Of the last four levels, how many from the shallow end never learn: gradients stop after them (SIPE: 2)."""
    batch_norm: Literal["frozen", "synchronised"] = "frozen"
    """frozen keeps ImageNet statistics (SIPE). synchronised learns them, for networks trained from scratch."""

    def __post_init__(self) -> None:
        require(
            self.output_stride in (8, 16, 32), "backbone.output_stride", self.output_stride, "give 8, 16 or 32"
        )
        require(min(self.side_channels) > 0, "backbone.side_channels", self.side_channels, "give four positive numbers")
        require(0 <= self.detach_levels <= 3, "backbone.detach_levels", self.detach_levels, "give 0 to 3")


@dataclass(frozen=True, kw_only=True)
class CamConfig:
    """From class activation maps to image-specific prototypes (SIPE sections 3.1 and 3.2)."""

    __pydantic_config__ = FORBID_UNKNOWN

    background_factor: float = 0.5
    """b0: multiplies the background where prototypes are seeded. SIPE 0.5, SFC 0.3; depends on the backbone more
    than anything else, so choose it on a training split."""
    correlation: Literal["hierarchical", "last", "none"] = "hierarchical"
    """Feature whose pixel correlation refines the seeds by soft IoU; none takes the argmax of the maps (SFC)."""
    mask_absent: bool = True
    """Zero the maps of absent classes before the background is 1 - max (off: parity with SIPE's code)."""
    detach_sides: bool = False
    """Stop gradients of the prototype branch before the side convolutions (SIPE: on; PSDPM: off)."""

    def __post_init__(self) -> None:
        require(self.background_factor > 0, "cam.background_factor", self.background_factor, "give 0.3 to 2.0")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random resize, crop and flip; drawn from (random seed, epoch, image id)."""

    __pydantic_config__ = FORBID_UNKNOWN

    resize_long: tuple[int, int] = (320, 640)
    """Longest side after resizing, in pixels, uniform in this range (SIPE)."""
    crop_size: int = 512
    """Side of the square crop, padded with the mean colour where the image is smaller (SIPE)."""
    flip: bool = True
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        low, high = self.resize_long
        require(0 < low <= high, "augment.resize_long", self.resize_long, "give [low, high] with 0 < low <= high")
        require(self.crop_size >= 32, "augment.crop_size", self.crop_size, "give 32 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation of the network: SGD with polynomial decay (SIPE)."""

    __pydantic_config__ = FORBID_UNKNOWN

    epochs: int = 5
    """Passes over the training split (SIPE: 5)."""
    batch_size: int = 16
    """Images a step over all workers together; has to divide by the number of workers."""
    lr_backbone: float = 0.1
    """Learning rate of pretrained layers (SIPE: 0.1, with practically no momentum)."""
    lr_new: float = 1.0
    """Learning rate of the classifier and the side convolutions (SIPE: 1.0)."""
    momentum: float = 0.0
    """SGD momentum. SIPE passes 1e-4 by position, that is, none; use lr ten times lower with 0.9."""
    weight_decay: float = 1e-4
    """L2 penalty (SIPE)."""
    poly_power: float = 0.9
    """Learning rate is (1 - step/steps)^power of its start (SIPE)."""
    clip_norm: float = 1.0
    """Norm that the network's gradient is clipped to (SIPE)."""
    window_units: int = 16
    """Units that rows are shuffled over, within the permutation of all units (ours)."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "give 1 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "give 1 or more")
        require(self.lr_backbone >= 0, "lr_backbone", self.lr_backbone, "give 0 or more")
        require(self.lr_new > 0, "lr_new", self.lr_new, "give a positive number")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "give 0 to below 1")
        require(self.clip_norm > 0, "clip_norm", self.clip_norm, "give a positive number")
        require(self.window_units >= 1, "window_units", self.window_units, "give 1 or more; 16 is usual")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The base network, SIPE."""

    __pydantic_config__ = FORBID_UNKNOWN

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisation of the base."""
    gsc_weight: float = 1.0
    """Weight of the general-specific consistency |M - P|, as a mean over all channels (SIPE: 1)."""

    def __post_init__(self) -> None:
        require(self.gsc_weight >= 0, "base.gsc_weight", self.gsc_weight, "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """One normalizing flow with its Gaussian mixture prior."""

    __pydantic_config__ = FORBID_UNKNOWN

    architecture: Literal["realnvp", "glow"] = "realnvp"
    """realnvp: couplings after a rotation, at first the identity (ours). glow: DDFP's blocks of two couplings, with a
    permutation between blocks, at first random."""
    depth: int = 4
    """Couplings (a GLOW block is two; DDFP: 2 blocks)."""
    width: int = 256
    """Hidden units of the networks in the couplings (DDFP)."""
    clamp: float = 2.0
    """Bound on the log-scale of one coupling (DDFP)."""
    components: int = 1
    """K: Gaussians a class (DDFP: 1)."""
    mean_scale: float = 1.0
    """r: standard deviation that the means of the components are drawn with (DDFP: 1)."""
    trainable_means: bool = True
    """Whether the means learn with the flow (DDFP: yes)."""
    noise: float = 0.05
    """Standard deviation of the noise on standardised features in training (DDFP)."""
    lr: float = 1e-3
    """Adam's learning rate (DDFP), decayed exponentially."""
    lr_final: float = 1e-5
    """Learning rate at the end of the run (DDFP)."""
    clip_norm: float = 1.0
    """Gradient norm, of nats per dimension (DDFP: 50 on nats)."""
    pixels_per_image: int = 384
    """Most pixels of an image that a step trains the flow on (ours: 6144 in a batch of 16)."""
    confident_share: float = 0.5
    """rho: share of a class's pixels in an image, best first, that carry their label; the rest only know the
    image's tags. (Ours; the split itself is DDFP's.)"""
    unsure: Literal["tags", "all"] = "tags"
    """Classes that a pixel without a label of its own is a mixture of: the image's (ours), or all (DDFP)."""
    discriminative_weight: float = 1.0
    """Cross-entropy of the class posterior on confident pixels, in nats (idea: FlowGMM)."""
    discriminative_tempered: bool = False
    """Take that cross-entropy of the tempered posterior, which is what is read, times the temperature (ours)."""
    balance_classes: bool = True
    """Weigh every class of a batch equally, not by its pixels (ours)."""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "components", "pixels_per_image"):
            require(getattr(self, name) >= 1, f"flow.{name}", getattr(self, name), "give 1 or more")
        whole = self.architecture == "realnvp" or self.depth % 2 == 0
        require(whole, "flow.depth", self.depth, "give an even number: a GLOW block is two couplings")
        for name in ("clamp", "mean_scale", "lr", "lr_final", "clip_norm"):
            require(getattr(self, name) > 0, f"flow.{name}", getattr(self, name), "give a positive number")
        require(self.noise >= 0, "flow.noise", self.noise, "give 0 or more")
        require(0 < self.confident_share <= 1, "flow.confident_share", self.confident_share, "give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The mixture's posterior as a target for the classifier CAM."""

    __pydantic_config__ = FORBID_UNKNOWN

    weight: float = 0.1
    """w_cal, on the mean over channels of tagged classes (ours)."""
    temperature: float | None = None
    """What log-likelihoods are divided by in the posterior, until it is fitted; none means D/16 (ours). At 1 maps are
    nearly binary, as the paper's figure draws them."""
    fit_temperature: bool = True
    """Fit the posterior's temperature on held-out confident pixels; else it stays as it is (ours)."""
    held_out_share: float = 0.2
    """Share of confident pixels kept from training f1, to fit the temperature on (ours)."""
    refit_every: int = 50
    """Steps between fits of the temperature (ours)."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "brnf.calibration.weight", self.weight, "give 0 or more")
        temperature = self.temperature
        require(
            temperature is None or temperature > 0,
            "brnf.calibration.temperature", temperature, "give a positive number, or none",
        )
        require(0 < self.held_out_share < 1, "brnf.calibration.held_out_share", self.held_out_share, "give 0 to 1")
        require(self.refit_every >= 1, "brnf.calibration.refit_every", self.refit_every, "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """BSDNF: pixels of the base seed that are unlikely under f2 are depressed."""

    __pydantic_config__ = FORBID_UNKNOWN

    enabled: bool = True
    """Off guides by the base seed as it is."""
    score: Literal["likelihood", "ratio"] = "ratio"
    """likelihood of the pixel under its class (the paper's figure), or its ratio to the background's (ours: it
    keeps its meaning where context comes along with the class)."""
    floor: float = 0.1
    """a: what a fully depressed pixel keeps of its score (ours)."""
    softness: float = 0.25
    """kappa in standard deviations of the class's scores: how soft the threshold is (ours)."""
    max_share: float = 0.3
    """Most of a class's pixels in an image that may be depressed (ours)."""
    queue_size: int = 8192
    """Scores kept a class, oldest leave (ours)."""
    scores_per_image: int = 32
    """Most scores that one image gives to a class's queue (ours)."""
    refit_every: int = 50
    """Steps between fits of the thresholds (ours)."""
    fallback_quantile: float = 0.05
    """Threshold where the scores do not split into two modes (ours)."""

    def __post_init__(self) -> None:
        for name in ("floor", "max_share", "fallback_quantile"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"brnf.denoise.{name}", value, "give 0 to 1")
        require(self.softness > 0, "brnf.denoise.softness", self.softness, "give a positive number")
        for name in ("queue_size", "scores_per_image", "refit_every"):
            require(getattr(self, name) >= 1, f"brnf.denoise.{name}", getattr(self, name), "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """FSCL: prototypes against a memory bank of region and sampled features."""

    __pydantic_config__ = FORBID_UNKNOWN

    weight: float = 0.02
    """w_nce (ours; PPC 0.1 without gradient clipping)."""
    temperature: float = 0.1
    """tau of InfoNCE (PPC)."""
    region_size: int = 256
    """M_r: region features kept a class (DDFP's log: 256 keys)."""
    sampled_size: int = 64
    """M_a: features sampled from f1 kept a class; 0 leaves them out (ours)."""
    sampled_share: float = 0.5
    """lambda_aug: weight of the sampled among the positives (ours)."""
    sampling_std: float = 0.5
    """s: standard deviation of the draws around a component's mean (ours)."""
    select: Literal["density", "random"] = "density"
    """Of four times as many draws, keep the likeliest of their class (low bias, ours); or draw and keep all."""
    refresh_every: int = 50
    """Steps between redraws of the sampled features (ours)."""
    min_pixels: int = 200
    """Confident pixels that f1 must have seen of a class before it is sampled (ours)."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "brnf.contrast.weight", self.weight, "give 0 or more")
        for name in ("temperature", "sampling_std"):
            value = getattr(self, name)
            require(value > 0, f"brnf.contrast.{name}", value, "give a positive number")
        require(0 <= self.sampled_share <= 1, "brnf.contrast.sampled_share", self.sampled_share, "give 0 to 1")
        require(self.region_size >= 1, "brnf.contrast.region_size", self.region_size, "give 1 or more")
        require(self.sampled_size >= 0, "brnf.contrast.sampled_size", self.sampled_size, "give 0 or more")
        require(self.refresh_every >= 1, "brnf.contrast.refresh_every", self.refresh_every, "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """When each part of BRNF switches on, as fractions of the run."""

    __pydantic_config__ = FORBID_UNKNOWN

    start_flows: float = 0.125
    """Flows start to learn and the bank to fill (DDFP: after epoch 1)."""
    start_use: float = 0.25
    """Calibration and BSDNF start (DDFP: one epoch later)."""
    start_contrast: float = 0.35
    """Contrast starts (DDFP's log: epoch 3)."""
    ramp: float = 0.06
    """Length of the linear ramp of each weight (ours)."""
    freeze_standardiser: float = 0.3
    """Feature statistics stop moving, so that the latent space does (ours)."""

    def __post_init__(self) -> None:
        for name in ("start_flows", "start_use", "start_contrast", "ramp", "freeze_standardiser"):
            require(0 <= getattr(self, name) <= 1, f"brnf.schedule.{name}", getattr(self, name), "give 0 to 1")
        require(
            self.start_flows <= self.start_use,
            "brnf.schedule.start_use", self.start_use, "flows must learn before they are used: raise it",
        )


@dataclass(frozen=True, kw_only=True)
class BrnfConfig:
    """The BRNF network: guidance by the base seed, two flows, calibration, BSDNF, contrast."""

    __pydantic_config__ = FORBID_UNKNOWN

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=8))
    """Optimisation of the network."""
    init: Literal["backbone", "base"] = "backbone"
    """Start from backbone.weights, or from the trained base network."""
    train_network: bool = True
    """Off trains f1 alone, on the features of the network as it is (ours, for `clean`)."""
    guidance_weight: float = 0.25
    """w_gui, on the mean over channels of tagged classes (PSDPM's 2, converted)."""
    consistency_weight: float = 0.0
    """SIPE's consistency |M - P| kept beside the guidance, on the same mean (the paper's figure omits it)."""
    f1: FlowConfig = field(default_factory=FlowConfig)
    """Flow over the classes of f1_labels: posterior, calibration, sampled features."""
    f1_labels: Literal["prototype", "seed"] = "prototype"
    """Maps that give f1 its classes: the prototype CAM (the paper's figure), or the base seed, which does not follow
    the network's own mistakes and may be refined along edges (ours)."""
    f2: FlowConfig = field(
        default_factory=lambda: FlowConfig(confident_share=0.8, discriminative_weight=0.0, balance_classes=False)
    )
    """Flow over the base seed's classes: likelihood for BSDNF, at natural class frequencies."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Posterior as target for the classifier CAM."""
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    """BSDNF."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    """FSCL."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Switch-on times."""

    def __post_init__(self) -> None:
        require(self.guidance_weight >= 0, "brnf.guidance_weight", self.guidance_weight, "give 0 or more")
        require(self.consistency_weight >= 0, "brnf.consistency_weight", self.consistency_weight, "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class GuidedConfig:
    """Guided filter along the image's edges, in rounds of sharpening and filtering (He et al. 2013)."""

    __pydantic_config__ = FORBID_UNKNOWN

    radius: float = 0.1
    """Of the square window, as a share of the image's longest side."""
    epsilon: float = 1e-4
    """Variance of colour (of [0, 1] a channel) below which edges are smoothed away."""
    sharpness: float = 8.0
    """Factor on scores in [0, 1] before their softmax over classes."""
    rounds: int = 2
    """Times that scores are sharpened and filtered."""

    def __post_init__(self) -> None:
        require(0 < self.radius < 0.5, "guided.radius", self.radius, "give a share of the longest side, such as 0.1")
        require(self.epsilon > 0, "guided.epsilon", self.epsilon, "give a positive number")
        require(self.sharpness > 0, "guided.sharpness", self.sharpness, "give a positive number")
        require(self.rounds >= 1, "guided.rounds", self.rounds, "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class CrfConfig:
    """Dense CRF of the maps read out and the image (Kraehenbuehl, Koltun 2011; pip install 'brnf[crf]')."""

    __pydantic_config__ = FORBID_UNKNOWN

    preset: CrfPreset = "irn"
    """Whose kernels and unary: irn (SIPE and SFC too; hard labels), clip_es, deeplab, afa (ToCo too; soft scores)."""
    iterations: int = 10
    """Of mean field."""
    sharpness: float = 8.0
    """Factor on scores in [0, 1] before their softmax over classes; irn looks at the best class only."""

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "crf.iterations", self.iterations, "give 1 or more; 10 is usual")
        require(self.sharpness > 0, "crf.sharpness", self.sharpness, "give a positive number")


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """Random walk stopped by boundaries (IRN, Ahn et al. 2019)."""

    __pydantic_config__ = FORBID_UNKNOWN

    boundaries: str | None = None
    """Directory of the boundary network that `brnf irn` trained."""
    beta: float = 10.0
    """How much faint boundaries stop (IRN)."""
    steps: int = 256
    """Of the walk (IRN's 2 to the power of 8)."""
    power: float = 1.5
    """Of the maps before the walk (SIPE)."""

    def __post_init__(self) -> None:
        require(self.beta > 0, "walk.beta", self.beta, "give a positive number; 10 is usual")
        require(self.steps >= 1, "walk.steps", self.steps, "give 1 or more; 256 is usual")
        require(self.power > 0, "walk.power", self.power, "give a positive number; 1.5 is usual")


@dataclass(frozen=True, kw_only=True)
class ParConfig:
    """Pixel-adaptive refinement: each pixel takes the scores of neighbours that look like it (AFA, CVPR 2022)."""

    __pydantic_config__ = FORBID_UNKNOWN

    iterations: int = 10
    """Times that scores are averaged (AFA)."""
    sharpness: float = 8.0
    """Factor on scores in [0, 1] before their softmax over classes (ours)."""

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "par.iterations", self.iterations, "give 1 or more; 10 is usual")
        require(self.sharpness > 0, "par.sharpness", self.sharpness, "give a positive number")


@dataclass(frozen=True, kw_only=True)
class ReadOutConfig:
    """From a trained network to class scores of an image."""

    __pydantic_config__ = FORBID_UNKNOWN

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Sizes the image is read at, relative to its own (SIPE)."""
    flip: bool = True
    """Average each scale with its mirror image (SIPE)."""
    long_side: int | None = None
    """Longest side at scale 1, in pixels; none keeps the image's own."""
    maps: ReadOut = "prototype"
    """classifier CAM, prototype CAM, posterior of f1's mixture (BRNF only), or their fusion."""
    fusion: tuple[float, float, float] = (1.0, 0.3, 0.5)
    """Weights of prototype, classifier and posterior in the fusion (SFC's 0.3; ours)."""
    background_factor: float | None = None
    """Stands in for cam.background_factor here: more makes maps tighter, trading FP for FN. None keeps what the
    network was trained with. Choose it on `train`, never on the split that is scored."""
    posterior_background: float = 1.0
    """Prior odds of the background in the posterior, against each class of the image: more makes its maps tighter. 1
    is the uniform prior that f1 is trained with (ours). Choose it on `train`."""
    refine: str = "none"
    """What is done to the maps after the network: none, crf, guided, par, walk, or several in turn, as in walk+crf."""
    guided: GuidedConfig = field(default_factory=GuidedConfig)
    """The guided filter, where refine asks for it."""
    crf: CrfConfig = field(default_factory=CrfConfig)
    """The dense CRF, where refine asks for it."""
    walk: WalkConfig = field(default_factory=WalkConfig)
    """The random walk, where refine asks for it."""
    par: ParConfig = field(default_factory=ParConfig)
    """Pixel-adaptive refinement, where refine asks for it."""

    @property
    def refiners(self) -> tuple[Refiner, ...]:
        """What `refine` names, in turn."""
        return () if self.refine == "none" else cast(tuple[Refiner, ...], tuple(self.refine.split("+")))

    def __post_init__(self) -> None:
        factor = self.background_factor
        require(factor is None or factor > 0, "background_factor", factor, "give 0.3 to 2.0, or none")
        odds = self.posterior_background
        require(odds > 0, "posterior_background", odds, "give a positive number; 1 is a uniform prior")
        require(len(self.scales) > 0 and min(self.scales) > 0, "scales", self.scales, "give positive numbers")
        positive = min(self.fusion) >= 0 and sum(self.fusion) > 0
        require(positive, "fusion", self.fusion, "give weights of 0 or more, not all 0")
        require(self.long_side is None or self.long_side >= 32, "long_side", self.long_side, "give 32 or more, or none")
        known = set(self.refiners) <= set(get_args(Refiner))
        require(known, "refine", self.refine, f"give none, {', '.join(get_args(Refiner))}, or a chain such as walk+crf")
        walks = "walk" not in self.refiners or self.walk.boundaries is not None
        require(walks, "walk.boundaries", None, "give the directory of a `brnf irn`, since refine has a walk")


@dataclass(frozen=True, kw_only=True)
class MasksConfig:
    """From class scores to masks, and what is kept beside them."""

    __pydantic_config__ = FORBID_UNKNOWN

    ignore_below: float = 0.0
    """Pixels whose best score is lower become 255, to be ignored. After crf, guided or par, scores are probabilities
    (CLIP-ES takes 0.95 after its CRF). 0 labels every pixel."""
    keep_scores: bool = False
    """Write scores/{id}.npz too: `keys` (K,) and `scores` (K, h, w), float16 at a quarter of the image's size."""

    def __post_init__(self) -> None:
        require(0 <= self.ignore_below <= 1, "ignore_below", self.ignore_below, "give a score, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """BSDNF offline: before BRNF is trained, base seeds are read anew from a flow that has learned all of them.

    The flow sees the frozen base's features. Its posterior takes pixels from a class that are unlikely for it over the
    whole data set, and gives it those that are likely. (Ours; the paper's figure only takes, and while training.)
    """

    __pydantic_config__ = FORBID_UNKNOWN

    enabled: bool = False
    """Off guides BRNF by the base seeds as they are."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=1))
    """Passes over the training split, and batch size; the network does not learn."""
    flow: FlowConfig = field(
        default_factory=lambda: FlowConfig(
            noise=0.5,
            pixels_per_image=128,
            confident_share=1.0,
            discriminative_tempered=True,
            balance_classes=False,
        )
    )
    """The flow, which learns every pixel of the base seeds."""
    read_out: ReadOutConfig = field(
        default_factory=lambda: ReadOutConfig(
            maps="fusion", fusion=(1.0, 0.0, 1.0), posterior_background=0.01, refine="guided"
        )
    )
    """How base and flow are read for the cleaned seeds."""


@dataclass(frozen=True, kw_only=True)
class IrnConfig:
    """The boundary network of the random walk (IRN, Ahn et al. 2019), and the base seeds that it trusts."""

    __pydantic_config__ = FORBID_UNKNOWN

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(epochs=3, batch_size=32, lr_backbone=0.0, lr_new=0.1, clip_norm=10.0)
    )
    """Optimisation of the new layers (IRN: 3 epochs, batch 32, rate 0.1, practically no momentum); the backbone never
    learns. IRN does not clip."""
    displacement_rate: float = 10.0
    """Learning rate of the displacement's layers, as a multiple of lr_new (IRN)."""
    radius: int = 10
    """Cells of 4 pixels; pairs of cells nearer than this are compared (IRN)."""
    foreground_factor: float = 1.0
    """Multiplies the background where foreground is found: more trusts less of it (SIPE: as it is)."""
    background_factor: float = 0.5
    """Multiplies the background where background is found: less trusts less of it (SIPE)."""
    crf: CrfConfig = field(default_factory=CrfConfig)
    """Dense CRF that both are found with, at the image's own size (IRN)."""

    def __post_init__(self) -> None:
        still = self.optim.lr_backbone == 0
        require(still, "irn.optim.lr_backbone", self.optim.lr_backbone, "give 0: only new layers learn")
        require(self.radius >= 2, "irn.radius", self.radius, "give 2 or more; 10 is usual")
        require(self.displacement_rate > 0, "irn.displacement_rate", self.displacement_rate, "give a positive number")
        factors = (self.background_factor, self.foreground_factor)
        require(
            0 < factors[0] <= factors[1],
            "irn.background_factor", factors[0], f"give 0 to irn.foreground_factor ({factors[1]})",
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Machines, not results: no field here changes what a run computes, but for rounding."""

    __pydantic_config__ = FORBID_UNKNOWN

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto asks Ray for a GPU where the cluster has one."""
    num_workers: int = 1
    """Training workers; each takes its share of batch_size."""
    cpus_per_worker: int | None = None
    """CPU cores of a training worker; none shares the node's among its workers."""
    label_actors: int | None = None
    """Actors that read out labels and seeds; none means one a GPU, else one a core."""
    label_batch: int | None = None
    """Images of one size that an actor reads together; none means 16 on a GPU and 1 on the CPU (ours)."""
    refine_actors: int | None = None
    """Actors that refine what the others have read. None means the CPUs that GPUs leave; without a GPU, and with 0,
    those that read refine as well."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network; flows, mixture and losses stay in float32."""
    prefetch_batches: int = 3
    """Batches decoded ahead, by as many threads (2 or more; Ray caps the threads at 4)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and the console."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    max_failures: int = 3
    """Times that training starts again from its last checkpoint after a worker or node is lost."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "prefetch_batches", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"compute.{name}", getattr(self, name), "give 1 or more")
        batch = self.label_batch
        require(batch is None or batch >= 1, "compute.label_batch", batch, "give 1 or more, or none")
        refining = self.refine_actors
        require(refining is None or refining >= 0, "compute.refine_actors", refining, "give 0 or more, or none")
        require(
            self.checkpoint_every % self.log_every == 0,
            "compute.checkpoint_every", self.checkpoint_every, f"give a multiple of log_every ({self.log_every})",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete run; what a recipe holds."""

    __pydantic_config__ = FORBID_UNKNOWN

    random_seed: int = 0
    """Everything random follows from it."""
    strict_weak: bool = True
    """Masks never influence training or selection."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set and splits."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Classification network."""
    cam: CamConfig = field(default_factory=CamConfig)
    """Class activation maps and prototypes."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random resize, crop, flip."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The base network."""
    seeds: ReadOutConfig = field(default_factory=ReadOutConfig)
    """How the base network is read out for the base seeds."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """What a flow makes of the base seeds before BRNF is guided by them."""
    brnf: BrnfConfig = field(default_factory=BrnfConfig)
    """The BRNF network."""
    label: ReadOutConfig = field(default_factory=ReadOutConfig)
    """How the BRNF network is read out for labels; the base is scored the same way with seeds.maps."""
    masks: MasksConfig = field(default_factory=MasksConfig)
    """What labels hold."""
    irn: IrnConfig = field(default_factory=IrnConfig)
    """The boundary network, for labels that are refined by a walk."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Machines; not part of the hash."""

    def __post_init__(self) -> None:
        workers, batches = self.compute.num_workers, (self.base.optim.batch_size, self.brnf.optim.batch_size)
        require(
            all(batch % workers == 0 for batch in batches),
            "compute.num_workers", workers, f"give a divisor of the batch sizes {batches}",
        )
        needs_flow = self.seeds.maps in ("posterior", "fusion")
        require(not needs_flow, "seeds.maps", self.seeds.maps, "the base has no flow: give classifier or prototype")


def parse(values: dict[str, Any]) -> RunConfig:
    """Validate nested values (from YAML, JSON or a tune sample) into a configuration.

    Raises:
        ValueError: With one line a field that is unknown, of the wrong type or out of range.
    """
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(values)
    except pydantic.ValidationError as error:
        lines = [
            f"{'.'.join(str(step) for step in e['loc']) or 'configuration'}: {e['msg']} (got {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise ValueError("invalid configuration:\n  " + "\n  ".join(lines)) from error


def recipe_path(name: str) -> Path:
    """Find a recipe: a path of a YAML file, or the name of one shipped in brnf/recipes.

    Raises:
        ValueError: If there is neither; names the recipes shipped.
    """
    shipped = Path(str(resources.files("brnf") / "recipes"))
    for candidate in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    raise ValueError(f"--config {name!r} is no file and no recipe; recipes: {', '.join(names)}, or a path to a YAML")


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a recipe and lay dotted overrides (`brnf.f1.depth` -> 8) over it.

    Raises:
        ValueError: If the file is not a mapping or a field is invalid.
    """
    values = yaml.safe_load(recipe_path(name).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{name} does not hold a mapping of fields; see brnf/recipes/demo.yaml")
    return overlay(parse(values), overrides or {})


def overlay(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Lay values by dotted field (`brnf.f1.depth`) over a configuration.

    Raises:
        ValueError: If there is no such field or its value is invalid.
    """
    nested = as_dict(config)
    for dotted, value in values.items():
        *parents, leaf = dotted.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            require(isinstance(node, dict), dotted, value, f"{parent} has no fields of its own; give a field's name")
        node[leaf] = value
    return parse(nested)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any, *ignored: str) -> str:
    """Twelve hex digits that change with any field of a configuration (or of a part of one) but those ignored."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
