"""What co-occurrence does to masks: the sample rendered with one dial after another, and an ablation on each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from brnf.ablation import Ablation
from brnf.arms import BASE, FULL, GUIDANCE, ORACLE, chosen_arms
from brnf.config import RunConfig
from brnf.data import storage
from brnf.stage import Outcome

DIALS = (0.0, 0.5, 0.7, 0.9, 0.95)
CURVES = {BASE: "without flow", GUIDANCE: "without flow", FULL: "any", ORACLE: "without flow"}
"""The arms that are drawn, each with the ways of reading it may be read in."""


@dataclass(kw_only=True)
class BiasCurve:
    """An ablation a dial, in OUT/dial-N; goes on where it stopped."""

    config: RunConfig
    out: str
    """Gets a directory a dial, bias.json and bias.png."""
    dials: tuple[float, ...] = DIALS
    """Probabilities that an object stands on the context of its class."""
    address: str | None = None
    """Ray cluster to use; none starts a local one."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Every stage that is complete, in order."""

    def run(self) -> dict[str, Any]:
        """Bring every dial up to date and return what bias.json holds.

        Returns:
            `points`, one a dial and arm: `dial`, `arm`, and the scores of the ablation, `context_share` among them.
        """
        from brnf.data.scenes import render_sample
        from brnf.evaluation.bias_plot import plot

        points = []
        for dial in self.dials:
            out = storage.join(self.out, f"dial-{dial:g}")
            root = storage.join(out, "sample")
            render_sample(root, bias=dial, random_seed=self.config.random_seed)
            ablation = Ablation(
                config=self.config,
                root=root,
                out=out,
                arms=chosen_arms(list(CURVES)),
                random_seeds=(self.config.random_seed,),
                address=self.address,
                outcomes=self.outcomes,
            )
            for arm in ablation.run()["arms"]:
                if CURVES.get(arm["name"]) == arm["read"]:
                    points.append({"dial": dial, "arm": arm["name"], **arm["runs"][0]["reported_on"]})
        result = {"points": points, "random_seed": self.config.random_seed}
        storage.write_json(storage.join(self.out, "bias.json"), result)
        plot(storage.join(self.out, "bias.png"), points)
        return result
