"""Text tables: what the columns do not share stands under them."""

from __future__ import annotations

from brnf.tables import comparison


def scores(miou: float, **protocol: object) -> dict[str, object]:
    return {"miou": miou, "mean_fp": 0.25, "mean_fn": None, "images": 3, "protocol": {"split": "val"} | protocol}


def test_comparison__names_what_the_protocols_differ_in() -> None:
    gain = {key: {"difference": 0.125, "low": -0.02, "high": 0.25} for key in ("miou", "mean_fp", "mean_fn")}
    base, brnf = scores(0.5, background_factor=1.0), scores(0.625, background_factor=1.3)
    lines = comparison({"base": base, "brnf": brnf, "gain": gain})
    assert lines[0] == "3 images; split val"
    difference = ["+12.5", "-2.0", "to", "+25.0"]
    assert lines[1].split()[:4] == ["%", "base", "BRNF", "gain"]
    assert [line.split() for line in lines[2:]] == [
        ["mIoU", "50.0", "62.5", *difference],
        ["mean", "FP", "(over-activation)", "25.0", "25.0", *difference],
        ["mean", "FN", "(under-activation)", "-", "-", *difference],
        ["background_factor:", "base", "1.0;", "BRNF", "1.3"],
    ]
