"""What an ablation compares: arms, each of which has one part of the method more, and the ways that runs are read.

Every arm shares shards, base and seeds, trains as many steps, and may be read in the same ways, of which one is chosen
for each arm by the same rule on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from brnf.config import ReadOutConfig, RunConfig, overlay

BASE, GUIDANCE, FULL, ORACLE = "base", "guidance", "full", "oracle"
NO_CLEAN = {"clean.enabled": False}
NO_CALIBRATION = {"brnf.calibration.weight": 0.0}
NO_DENOISE = {"brnf.denoise.enabled": False}
# The rest of a part that is off goes back to its defaults, so that runs without it do not change with its fields.
NO_CONTRAST = {"brnf.contrast": {"weight": 0.0}}

FACTORS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Background factors that prototype CAMs are read with; the best have been 0.3 to 0.7, on the sample 2."""
ODDS = (0.1, 0.02, 0.005, 0.001, 2e-4, 4e-5)
"""Prior odds of the background that posteriors are read with; the best have been 0.005 and 0.001."""
FUSED_ODDS, FUSED_WEIGHTS = ODDS[2:-1], (0.5, 1.0)
"""The same where posteriors are fused (the best: 0.0002), and their weights beside the prototype CAM's 1."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the table."""

    name: str
    what: str
    """What it adds, for people."""
    fields: dict[str, Any] | None = None
    """What is laid over the recipe, mostly parts turned off; None for the base, which is trained already."""
    against: str | None = None
    """The arm that it is compared with, to tell the effect of what it adds."""
    true_seeds: bool = False
    """Whether it is guided by true masks in place of base seeds: no weak supervision, but the most to be had."""
    every_seed: bool = False
    """Whether it is run with every random seed, or with the first only."""


ARMS: tuple[Arm, ...] = (
    Arm(name=BASE, what="the base", every_seed=True),
    Arm(
        name="longer", what="its own losses, for as many steps more", against=BASE,
        fields={"brnf.guidance_weight": 0.0, **NO_CALIBRATION, **NO_DENOISE, **NO_CONTRAST},
    ),
    Arm(
        name=GUIDANCE, what="E1: guided by the base seeds", against=BASE, every_seed=True,
        fields={**NO_CLEAN, **NO_CALIBRATION, **NO_DENOISE, **NO_CONTRAST},
    ),
    Arm(
        name=ORACLE, what="guided by true masks instead (an upper bound, not a method)", against=GUIDANCE,
        fields={**NO_CALIBRATION, **NO_DENOISE, **NO_CONTRAST}, true_seeds=True,
    ),
    Arm(
        name="clean", what="E3 offline: by seeds that a flow has cleaned", against=GUIDANCE,
        fields={**NO_CALIBRATION, **NO_DENOISE, **NO_CONTRAST},
    ),
    Arm(
        name="calibration", what="E2: + calibration by f1's posterior", against="clean",
        fields={**NO_DENOISE, **NO_CONTRAST},
    ),
    Arm(
        name="likelihood", what="E3: + BSDNF by likelihood", against="calibration",
        fields={"brnf.denoise.enabled": True, "brnf.denoise.score": "likelihood", **NO_CONTRAST},
    ),
    Arm(
        name="ratio", what="E3: + BSDNF by ratio", against="calibration",
        fields={"brnf.denoise.enabled": True, "brnf.denoise.score": "ratio", **NO_CONTRAST},
    ),
    Arm(
        name="denoise", what="E3: + BSDNF or not, as the recipe has it", against="calibration", fields=NO_CONTRAST,
    ),
    Arm(
        name="contrast", what="E4: + contrast, without sampled features", against="denoise",
        fields={"brnf.contrast.sampled_size": 0},
    ),
    Arm(name=FULL, what="E5: + sampled features, the full method", against="contrast", fields={}, every_seed=True),
)  # fmt: skip


def chosen_arms(names: Sequence[str]) -> list[Arm]:
    """Arms by name in the order of ARMS; all if no name is given. The base is always among them.

    Raises:
        ValueError: If a name is no arm.
    """
    known = [arm.name for arm in ARMS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--arms names {', '.join(unknown)}; the arms are {', '.join(known)}")
    return [arm for arm in ARMS if not names or arm.name in names or arm.name == BASE]


def arm_config(config: RunConfig, arm: Arm) -> RunConfig:
    """The recipe with the arm's fields. BSDNF that an arm leaves off has no fields, so that equal runs are one run."""
    made = overlay(config, arm.fields or {})
    return made if made.brnf.denoise.enabled or not arm.fields else overlay(made, {"brnf.denoise": {"enabled": False}})


def ways(read_out: ReadOutConfig) -> dict[str, list[ReadOutConfig]]:
    """Ways of reading a run at a recipe's scales, by family: those of PLAIN, then those that take a flow.

    Nothing else of the recipe's read-out is in them, so that scores stay up to date when it changes.
    """
    plain = ReadOutConfig(scales=read_out.scales, flip=read_out.flip, long_side=read_out.long_side)
    return {
        "prototype": [replace(plain, maps="prototype", background_factor=factor) for factor in FACTORS],
        "prototype and classifier": [
            replace(plain, maps="fusion", fusion=(1.0, 0.3, 0.0), background_factor=factor) for factor in FACTORS
        ],
        "posterior": [replace(plain, maps="posterior", posterior_background=odds) for odds in ODDS],
        "prototype and posterior": [
            replace(
                plain, maps="fusion", fusion=(1.0, 0.0, weight), background_factor=factor, posterior_background=odds
            )
            for factor in FACTORS
            for odds in FUSED_ODDS
            for weight in FUSED_WEIGHTS
        ],
    }


PLAIN = ("prototype", "prototype and classifier")
"""Families that any run can be read in, the base too."""


def indices(read_out: ReadOutConfig, families: Sequence[str]) -> list[int]:
    """Places of the ways of some families among all ways, in order."""
    names = [family for family, members in ways(read_out).items() for _ in members]
    return [index for index, family in enumerate(names) if family in families]
