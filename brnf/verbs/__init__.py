"""The commands: flags with their explanation, one call a stage, what there is to show. Nothing is computed here."""

from __future__ import annotations

from brnf.verbs.base import Verb
from brnf.verbs.chains import Ablate, Bias, Demo, RunPipeline, Tune
from brnf.verbs.stages import (
    Evaluate,
    Export,
    Irn,
    Label,
    PrepareCoco,
    PrepareFolder,
    PrepareVoc,
    Sample,
    Seeds,
    Train,
)

__all__ = ["VERBS", "Demo", "Label", "Train", "Verb"]

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
    "irn": Irn,
    "label": Label,
    "evaluate": Evaluate,
    "export": Export,
}
