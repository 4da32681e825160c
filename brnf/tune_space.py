"""A sweep as data: distributions over fields of the configuration, what trials are scored by, how much may be spent.

Every sample is drawn and checked against the configuration before anything starts.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from brnf.config import FORBID_UNKNOWN, RunConfig, overlay, require

TUNABLE = "brnf."
FIXED = "brnf.optim.epochs"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Where a field's values come from; exactly one is given."""

    __pydantic_config__ = FORBID_UNKNOWN

    choice: tuple[Any, ...] | None = None
    """Any of these."""
    uniform: tuple[float, float] | None = None
    """Between two numbers."""
    loguniform: tuple[float, float] | None = None
    """Between two positive numbers, each factor as likely."""

    def __post_init__(self) -> None:
        given = [name for name in ("choice", "uniform", "loguniform") if getattr(self, name) is not None]
        require(len(given) == 1, "parameter", given, "give exactly one of choice, uniform, loguniform")
        require(self.choice is None or len(self.choice) > 0, "choice", self.choice, "give one value or more")
        low, high = self.uniform or self.loguniform or (1, 2)
        require(low < high, given[0], (low, high), "give the lower number first")
        require(self.loguniform is None or low > 0, "loguniform", (low, high), "give positive numbers")

    def sample(self, rng: random.Random) -> Any:
        """Draw one value."""
        if self.choice is not None:
            return rng.choice(self.choice)
        if self.uniform is not None:
            return rng.uniform(*self.uniform)
        assert self.loguniform is not None
        low, high = map(math.log, self.loguniform)
        return math.exp(rng.uniform(low, high))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What trials are scored by, after every epoch. It reads masks, so it is no longer strictly weak supervision."""

    __pydantic_config__ = FORBID_UNKNOWN

    metric: Literal["miou", "mean_fp", "mean_fn"] = "miou"
    """miou is maximised; mean_fp and mean_fn are minimised."""
    split: str = "train"
    """Split whose masks are read. Not the one that results are reported on."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes that images are read at; fewer than for final labels, to save time."""
    flip: bool = False
    """Whether mirror images are read too."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.metric == "miou" else -1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be spent, and when ASHA stops a trial."""

    __pydantic_config__ = FORBID_UNKNOWN

    trials: int
    """Samples drawn."""
    epochs: int
    """Epochs of a trial that is not stopped; stands in for brnf.optim.epochs."""
    concurrent: int = 1
    """Trials at once; they share the cluster's cores and GPUs."""
    grace_epochs: int = 1
    """No trial is stopped before."""
    reduction_factor: float = 2.0
    """Of the trials at an epoch, one in so many goes on."""
    random_seed: int = 0
    """Draws the samples."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "concurrent", "grace_epochs"):
            require(getattr(self, name) >= 1, f"budget.{name}", getattr(self, name), "give 1 or more")
        require(self.reduction_factor > 1, "budget.reduction_factor", self.reduction_factor, "give more than 1")


@dataclass(frozen=True, kw_only=True)
class TuneSpace:
    """A sweep; what a file in tune_spaces/ holds."""

    __pydantic_config__ = FORBID_UNKNOWN

    parameters: dict[str, Distribution]
    """By dotted field, such as brnf.f1.depth."""
    budget: Budget
    """How much may be spent."""
    objective: Objective = field(default_factory=Objective)
    """What trials are scored by."""

    def __post_init__(self) -> None:
        require(len(self.parameters) > 0, "parameters", self.parameters, "name one field or more")
        for name in self.parameters:
            tunable = name.startswith(TUNABLE) and name != FIXED
            require(tunable, "parameters", name, "trials share shards, base and seeds: name fields of brnf, not epochs")

    def with_budget(self, **given: int | None) -> TuneSpace:
        """The same sweep with those fields of its budget replaced that are not None."""
        return replace(self, budget=replace(self.budget, **{name: n for name, n in given.items() if n is not None}))

    def samples(self, config: RunConfig) -> list[dict[str, Any]]:
        """Draw the trials' values by dotted field, each checked against the configuration.

        Raises:
            ValueError: If a field does not exist or a value is not allowed; names it.
        """
        rng = random.Random(self.budget.random_seed)
        drawn = [{name: d.sample(rng) for name, d in self.parameters.items()} for _ in range(self.budget.trials)]
        for name, distribution in self.parameters.items():
            for value in distribution.choice or distribution.uniform or distribution.loguniform or ():
                overlay(config, {name: value})
        for values in drawn:
            overlay(config, values)
        return drawn

    def trial_config(self, config: RunConfig, values: dict[str, Any]) -> RunConfig:
        """Configuration of a trial: the recipe, its sample, the budget's epochs, the objective's read-out."""
        read_out = {"label.scales": list(self.objective.scales), "label.flip": self.objective.flip}
        return overlay(config, {**values, FIXED: self.budget.epochs, **read_out})


def load_space(path: str) -> TuneSpace:
    """Read a sweep from YAML.

    Raises:
        ValueError: If there is no such file, or a field is unknown or out of range; names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"--space {path!r} is no file; tune_spaces/ has examples")
    try:
        return pydantic.TypeAdapter(TuneSpace).validate_python(yaml.safe_load(Path(path).read_text()))
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'space'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path} is no sweep:\n  " + "\n  ".join(lines)) from error
