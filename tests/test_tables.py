"""Text tables: what the columns do not share stands under them."""

from __future__ import annotations

from brnf.tables import comparison


def scores(miou: float, **protocol: object) -> dict[str, object]:
    return {"miou": miou, "mean_fp": 0.25, "mean_fn": None, "images": 3, "protocol": {"split": "val"} | protocol}


def test_comparison__names_what_the_protocols_differ_in() -> None:
    lines = comparison({"base": scores(0.5, background_factor=1.0), "brnf": scores(0.625, background_factor=1.3)})
    assert lines[0] == "3 images; split val"
    assert [line.split() for line in lines[1:]] == [
        ["%", "base", "BRNF"],
        ["mIoU", "50.0", "62.5"],
        ["mean", "FP", "(over-activation)", "25.0", "25.0"],
        ["mean", "FN", "(under-activation)", "-", "-"],
        ["background_factor:", "base", "1.0;", "BRNF", "1.3"],
    ]
