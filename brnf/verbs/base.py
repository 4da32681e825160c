"""What commands share: their flags, what they show, one stage brought up to date on Ray."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from brnf.chain import progress
from brnf.config import RunConfig, load_recipe
from brnf.presets import Preset, preset_fields
from brnf.stage import Outcome, Stage, run_stage

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
        with contextlib.ExitStack() as cluster:
            return self.bring_on(cluster, stage)

    def bring_on(self, cluster: contextlib.ExitStack, stage: Stage) -> Result:
        """Bring one of several stages up to date; Ray starts with the first that needs it and ends with `cluster`."""
        note = progress(stage.name, stage.out)

        def begin() -> None:
            from brnf.distributed.session import session

            note("running")
            cluster.enter_context(session(self.address))

        outcome = run_stage(stage, force=self.force, begin=begin)
        note("done" if outcome.ran else "up to date")
        values = {"stage": stage.name, "out": stage.out, "ran": outcome.ran, "refused": outcome.refused}
        return Result(values=values, lines=[f"{stage.name}: {stage.out}"], outcomes=[outcome])


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
