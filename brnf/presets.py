"""Presets: fields laid over a recipe at once.

"recommended" lays nothing over it, since recipes and defaults are what is recommended. "literal" is as close to the
paper's overview figure and the code that it names (DDFP, SIPE) as public material allows; everything that we found to
work better is off. Flags of the command line win over both.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

Preset = Literal["recommended", "literal"]

_LITERAL_FLOW = {
    "architecture": "glow",
    "depth": 4,
    "width": 256,
    "clamp": 2.0,
    "components": 1,
    "mean_scale": 1.0,
    "noise": 0.05,
    "clip_norm": 0.065,  # 50 on nats at 768 dimensions
    "unsure": "all",
    "discriminative_weight": 0.0,
    "balance_classes": False,
}
_LITERAL = {
    **{f"brnf.{flow}.{name}": value for flow in ("f1", "f2") for name, value in _LITERAL_FLOW.items()},
    "brnf.f1_labels": "prototype",
    "brnf.f1.confident_share": 0.5,
    "brnf.f2.confident_share": 0.8,
    "brnf.consistency_weight": 0.0,
    "brnf.calibration.temperature": 1.0,
    "brnf.calibration.fit_temperature": False,
    "clean.enabled": False,
    "brnf.denoise.enabled": True,
    "brnf.denoise.score": "likelihood",
    "brnf.denoise.floor": 0.0,
    "brnf.denoise.softness": 0.001,
    "brnf.contrast.temperature": 0.5,
    "brnf.contrast.region_size": 256,
    "brnf.contrast.sampling_std": 1.0,
    "brnf.contrast.select": "random",
    "seeds.refine": "none",
    "label.maps": "prototype",
}
PRESETS: dict[str, dict[str, Any]] = {"recommended": {}, "literal": _LITERAL}


def preset_fields(name: str) -> dict[str, Any]:
    """Values by dotted field.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset {name!r} is none; presets: {', '.join(get_args(Preset))}")
    return PRESETS[name]
