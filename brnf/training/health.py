"""Whether a run of BRNF is well: ranges that its logged measures should keep to, and what to do where one does not.

`warnings` works on rows of metrics.jsonl alone, so the driver can tell while workers train, and a finished run can be
judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a measure should stay.

    Bounds are ours, from runs on photographs that were well; the alarm on depressed pixels and the list of measures
    are those that a run of the method is watched by in DDFP's logs and in our notes.
    """

    measure: str
    """Name in metrics.jsonl."""
    low: float = -inf
    high: float = inf
    after: float = 0.0
    """Share of the run before which the measure is still settling."""
    meaning: str
    remedy: str


FLOW_REMEDY = "lower {flow}.lr or {flow}.clamp, or raise {flow}.noise"

RANGES: tuple[Range, ...] = (
    *(
        Range(
            measure=f"{flow}_bits_per_dim", low=-2.0, high=3.5, after=0.3,
            meaning=f"flow {flow} does not fit its features (a Gaussian needs 2.05), or fits a few of them exactly",
            remedy=FLOW_REMEDY.format(flow=f"brnf.{flow}"),
        )
        for flow in ("f1", "f2")
    ),
    Range(
        measure="posterior_accuracy", low=0.6, after=0.6,
        meaning="the mixture's posterior misses the class of confident pixels that it was not trained on",
        remedy="start it later (brnf.schedule.start_use) or do without (brnf.calibration.weight 0)",
    ),
    Range(
        measure="depressed_share", high=0.35, after=0.3,
        meaning="BSDNF takes away more of the base seed than noise can explain",
        remedy="lower brnf.denoise.max_share or brnf.denoise.fallback_quantile",
    ),
    Range(
        measure="region_bank_fill", low=0.3, after=0.8,
        meaning="classes hardly reach the memory bank, so contrast has few negatives",
        remedy="lower brnf.contrast.region_size, or train longer",
    ),
    Range(
        measure="gradient_share_contrast", high=0.6, after=0.4,
        meaning="contrast outweighs all other losses where features are concerned",
        remedy="lower brnf.contrast.weight",
    ),
    Range(
        measure="gradient_share_calibration", high=0.6, after=0.4,
        meaning="the posterior outweighs the image's tags and the base seed",
        remedy="lower brnf.calibration.weight",
    ),
)  # fmt: skip


def warnings(rows: Iterable[Mapping[str, float]], total_steps: int, ranges: Sequence[Range] = RANGES) -> list[str]:
    """One line for each measure that leaves its range, with the step where it first did.

    Args:
        rows: Of metrics.jsonl, in order.
        total_steps: Steps of the run; rows carry the steps done as `step`.
        ranges: What to watch.

    Returns:
        Lines in the order of `ranges`; empty if all is well.
    """
    found: dict[str, str] = {}
    for row in rows:
        progress = row["step"] / total_steps
        for entry in ranges:
            value = row.get(entry.measure)
            if value is None or entry.measure in found or progress <= entry.after:
                continue
            if not entry.low <= value <= entry.high:  # not-a-number is outside of every range
                side = f"below {entry.low:g}" if value < entry.low else f"above {entry.high:g}"
                found[entry.measure] = (
                    f"{entry.measure} is {value:.3g} at step {row['step']:.0f}, {side}: {entry.meaning}; {entry.remedy}"
                )
    return [found[entry.measure] for entry in ranges if entry.measure in found]


def gradient_shares(terms: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each loss's share of the gradient that reaches the network's outputs; the shares of a step sum to one.

    Measured on this rank: gradients of the parameters would cost a backward pass of the network a loss.

    Args:
        terms: Weighted losses by name, of a graph that is still needed.
        outputs: Tensors of the graph that all losses come from.
    """
    norms = {}
    for name, term in terms.items():
        found = torch.autograd.grad(term, outputs, retain_graph=True, allow_unused=True)
        squares = [gradient.square().sum() for gradient in found if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else term.new_zeros(())
    total = torch.stack([*norms.values()]).sum().clamp_min(1e-12)
    return {f"gradient_share_{name}": norm / total for name, norm in norms.items()}
