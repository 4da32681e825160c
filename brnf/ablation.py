"""The ablation: one part of the method after another, on shared shards, base and seeds, read and judged alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brnf.arms import BASE, FULL, GUIDANCE, PLAIN, Arm, arm_config, indices, ways
from brnf.chain import Chain, say
from brnf.config import RunConfig, require
from brnf.data import storage
from brnf.stage import Outcome, Stage, code_version
from brnf.stages import score_stage, train_stage, true_seeds_stage

if TYPE_CHECKING:
    from brnf.evaluation.ablation import Scored


@dataclass(kw_only=True)
class Ablation:
    """Trains and scores every arm; what is done stays done when it is stopped and started again.

    Shares `shards/`, `base/`, `seeds/` and `brnf/` (the full method) with a pipeline in the same directory. Other arms
    are in `arms/`, counts in `scores/`, and further random seeds each have such directories in `random-seed-N/`.
    """

    config: RunConfig
    root: str
    """The data set."""
    out: str
    """Gets all directories, ablation.json and ablation.png."""
    arms: Sequence[Arm]
    """What is compared; the base is among them."""
    random_seeds: tuple[int, ...]
    """The first is run with every arm, the others with those that ask for it."""
    choose_split: str = "train"
    """Split whose masks choose a way of reading for each run."""
    address: str | None = None
    """Ray cluster to use; none starts a local one."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Every stage that is complete, in order."""

    def __post_init__(self) -> None:
        split = self.config.data.score_split
        require(split is not None, "data.score_split", split, "name a split with masks, since arms are judged by them")
        require(self.choose_split != split, "choose_split", self.choose_split, "choose on another split than is scored")
        require(len(self.random_seeds) > 0, "random_seeds", self.random_seeds, "give one or more")

    def run(self) -> dict[str, Any]:
        """Bring every arm up to date and return what ablation.json holds.

        Raises:
            ValueError: If the configuration or an input makes a stage impossible; says which and what to do.
        """
        scored: dict[str, list[Scored]] = {arm.name: [] for arm in self.arms}
        shards: dict[str, str] = {}
        for number, random_seed in enumerate(self.random_seeds):
            config = dataclasses.replace(self.config, random_seed=random_seed)
            out = storage.join(self.out, f"random-seed-{random_seed}") if number else self.out
            chain = Chain(config=config, root=self.root, out=out, address=self.address, outcomes=self.outcomes)
            arms = [arm for arm in self.arms if arm.every_seed or not number]
            with chain:
                shards = shards or chain.prepare((self.choose_split, str(config.data.score_split)))
                for name, found in self._score_arms(chain, arms, shards).items():
                    scored[name].append(found)
        result = self._summary(scored)
        storage.write_json(storage.join(self.out, "ablation.json"), result)
        return result

    def _score_arms(self, chain: Chain, arms: Sequence[Arm], shards: dict[str, str]) -> dict[str, Scored]:
        """Train and score the arms of one random seed; arms that the recipe makes the same are run once."""
        base, seeds = chain.base_and_seeds(shards[chain.config.data.train_split])
        scored, owners = {}, {}
        for arm in arms:
            stage = None if arm.name == BASE else self._train_stage(chain, arm, shards, base, seeds)
            owner = owners.setdefault(stage.key, arm.name) if stage else BASE
            if owner == arm.name:
                scored[arm.name] = self._score(chain, arm, chain.bring(stage).out if stage else base, shards)
            else:
                say(f"{arm.name} is {owner}: the recipe leaves out what it adds")
                scored[arm.name] = scored[owner]
        return scored

    def _train_stage(self, chain: Chain, arm: Arm, shards: dict[str, str], base: str, seeds: str) -> Stage:
        """What trains an arm."""
        train = shards[chain.config.data.train_split]
        config = arm_config(chain.config, arm)
        if arm.true_seeds:
            seeds = chain.bring(true_seeds_stage(chain.config, shards=train, out=chain.at("true-seeds"))).out
        elif config.clean.enabled:
            seeds = chain.guiding_seeds(train, base, seeds)
        out = chain.at("brnf") if arm.name == FULL else chain.at("arms", arm.name)
        return train_stage(config, method="brnf", shards=train, seeds=seeds, base=base, out=out)

    def _score(self, chain: Chain, arm: Arm, run: str, shards: dict[str, str]) -> Scored:
        """Read a run in all its ways on both splits."""
        from brnf.data.counts import Counts
        from brnf.evaluation.ablation import Scored

        families = ways(chain.config.label)
        allowed = [way for name, family in families.items() if name in PLAIN or arm.name != BASE for way in family]
        counts = []
        for split in (self.choose_split, str(chain.config.data.score_split)):
            stage = score_stage(
                chain.config, allowed, run=run, shards=shards[split], out=chain.at("scores", arm.name, split)
            )
            counts.append(Counts.open(chain.bring(stage).out))
        return Scored(*counts)

    def _summary(self, scored: dict[str, list[Scored]]) -> dict[str, Any]:
        """What was measured: arms by themselves, effects with intervals; draws the effects."""
        from brnf.evaluation.ablation import best_way, describe, effect, plot

        classes = self.config.data.score_classes or None
        families = tuple(ways(self.config.label))
        wanted: list[tuple[str, str, Sequence[str]]] = [(arm.name, "without flow", PLAIN) for arm in self.arms]
        for name in (name for name in (GUIDANCE, FULL) if name in scored):
            wanted += [(name, family, (family,)) for family in families if family not in PLAIN]
            wanted.append((name, "any", families))
        best = {
            (name, read): best_way(scored[name], indices(self.config.label, chosen), classes)
            for name, read, chosen in wanted
        }
        effects = {
            title: effect(best[first], best[second], classes) for title, first, second in self._comparisons(best)
        }
        plot(storage.join(self.out, "ablation.png"), effects)
        what = {arm.name: arm.what for arm in self.arms}
        return {
            "arms": [
                {"name": name, "what": what[name], "read": read, "runs": describe(entry, classes)}
                for (name, read), entry in best.items()
            ],
            "effects": effects,
            "chosen_on": self.choose_split,
            "reported_on": self.config.data.score_split,
            "random_seeds": list(self.random_seeds),
            "code_version": code_version(),
        }

    def _comparisons(self, best: Collection[tuple[str, str]]) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
        """What is compared with what, where both were run: (title, first, second)."""
        pairs = [
            (f"{arm.name} - {arm.against}", (arm.name, "without flow"), (arm.against, "without flow"))
            for arm in self.arms
            if arm.against
        ]
        pairs += [
            ("full: posterior - base", (FULL, "posterior"), (BASE, "without flow")),
            ("full: with posterior - without", (FULL, "prototype and posterior"), (FULL, "without flow")),
            ("full - guidance (what flows add)", (FULL, "any"), (GUIDANCE, "without flow")),
            ("full - base", (FULL, "any"), (BASE, "without flow")),
        ]
        return [(title, first, second) for title, first, second in pairs if first in best and second in best]
