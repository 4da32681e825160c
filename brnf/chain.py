"""A chain of stages, which share a recipe, a directory and a Ray cluster; and what is said of their progress.

Ray starts when the first stage needs it, and not at all if nothing is left to do.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

from brnf.config import RunConfig
from brnf.data import storage
from brnf.stage import Outcome, PipelineStage, Stage, StageName, run_stage
from brnf.stages import clean_config, prepare_stage, seeds_stage, train_stage

STAGES: tuple[PipelineStage, ...] = get_args(PipelineStage)


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


@dataclass(kw_only=True)
class Chain:
    """Stages that share a recipe, a directory and, while it is used as a context, a Ray cluster."""

    config: RunConfig
    root: str
    """The data set."""
    out: str
    """The directory that the stages' directories go to."""
    address: str | None = None
    """Ray cluster to use; none starts a local one."""
    force_from: PipelineStage | None = None
    """Do this stage and every later one again."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Every stage that is complete, in order."""
    _session: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _has_session: bool = False

    def __post_init__(self) -> None:
        self.out = storage.absolute(self.out)

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._has_session = False
        self._session.__exit__(*error)

    def at(self, *names: str) -> str:
        """A path in the chain's directory."""
        return storage.join(self.out, *names)

    def forced(self, stage: StageName) -> bool:
        """Whether a stage has to be done again although it is up to date."""
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

    def bring(self, stage: Stage) -> Outcome:
        """Bring one stage up to date and say so."""
        note = progress(stage.name, stage.out)

        def begin() -> None:
            note("running")
            self._start_ray()

        outcome = run_stage(stage, force=self.forced(stage.name), replace=True, begin=begin)
        note("done" if outcome.ran else "up to date")
        self.outcomes.append(outcome)
        return outcome

    def prepare(self, others: Sequence[str]) -> dict[str, str]:
        """Shards of the split to train on and of others, each once."""
        splits = dict.fromkeys([self.config.data.train_split, *others])
        return {
            split: self.bring(
                prepare_stage(self.config, root=self.root, split=split, out=self.at("shards", split))
            ).out
            for split in splits
        }

    def guiding_seeds(self, train: str, base: str, seeds: str) -> str:
        """The seeds that BRNF is guided by: base seeds, cleaned if the recipe says so (inside the base's directory)."""
        if not self.config.clean.enabled:
            return seeds
        config, out = clean_config(self.config), storage.join(base, "clean")
        stage = train_stage(config, method="brnf", shards=train, seeds=seeds, base=base, out=out, name="clean")
        run, read_out = self.bring(stage).out, self.config.clean.read_out
        cleaned = storage.join(base, "clean-seeds")
        stage = seeds_stage(config, run=run, shards=train, out=cleaned, read_out=read_out, name="clean")
        return self.bring(stage).out

    def base_and_seeds(self, train: str) -> tuple[str, str]:
        """The base network, and its seeds of the images it was trained on."""
        base = self.bring(train_stage(self.config, method="sipe", shards=train, out=self.at("base"))).out
        return base, self.bring(seeds_stage(self.config, run=base, shards=train, out=self.at("seeds"))).out
