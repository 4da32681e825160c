"""Pairs and paths: the losses against loops in float64, what takes part in them, and what a class weighs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from brnf.affinity import LOSS_WEIGHTS, UNSURE, pair_losses, straight_paths, sure_labels

N, H, W = 2, 7, 9
Sums = dict[str, tuple[float, float]]


def draw(random_seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(random_seed)
    boundary = 3 * torch.randn(N, H, W, generator=generator, dtype=dtype)
    displacement = 2 * torch.randn(N, 2, H, W, generator=generator, dtype=dtype)
    return boundary, displacement, torch.randint(-1, 3, (N, H, W), generator=generator)


def on_the_way(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells of the bounding box nearer than one cell to the line, by the distance of a point from a line."""
    (r0, c0), (r1, c1) = start, end
    rows, columns = range(min(r0, r1), max(r0, r1) + 1), range(min(c0, c1), max(c0, c1) + 1)
    length = math.hypot(r1 - r0, c1 - c0)
    return [(r, c) for r in rows for c in columns if abs((r1 - r0) * (c - c0) - (c1 - c0) * (r - r0)) / length < 1]


def by_loops(boundary: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> Sums:
    """Sum and count of each loss, over every unordered pair of cells."""
    sums = {name: (0.0, 0.0) for name in LOSS_WEIGHTS}

    def add(name: str, loss: float) -> None:
        total, count = sums[name]
        sums[name] = (total + loss, count + 1)

    cells = [(r, c) for r in range(H) for c in range(W)]
    for n in range(N):
        for i, a in enumerate(cells):
            for b in cells[i + 1 :]:
                kinds = {int(labels[n, *a]), int(labels[n, *b])}
                if math.dist(a, b) >= radius or UNSURE in kinds:
                    continue
                strongest = max(1 / (1 + math.exp(-float(boundary[n, *cell]))) for cell in on_the_way(a, b))
                if len(kinds) == 2:
                    add("affinity_negative", -math.log(strongest))
                    continue
                name = "foreground" if kinds.pop() else "background"
                apart = [float(displacement[n, axis, *a] - displacement[n, axis, *b]) for axis in (0, 1)]
                wanted = [b[axis] - a[axis] if name == "foreground" else 0 for axis in (0, 1)]
                add(f"affinity_{name}", -math.log(1 - strongest))
                add(f"displacement_{name}", sum(abs(x - y) for x, y in zip(apart, wanted, strict=True)) / 2)
    return sums


@pytest.mark.parametrize(("random_seed", "radius"), [(0, 2), (1, 3), (2, 5), (3, 12)])
def test_pair_losses__are_those_of_loops_over_pairs(random_seed: int, radius: int) -> None:
    boundary, displacement, labels = draw(random_seed)
    found = pair_losses(boundary, displacement, labels, radius)
    for name, (total, count) in by_loops(boundary, displacement, labels, radius).items():
        assert count > 0
        assert float(found[name].count) == count, name
        assert float(found[name].total) == pytest.approx(total, rel=1e-9), name


def test_pair_losses__gradients_are_those_of_the_loss() -> None:
    boundary, displacement, labels = (maps[:1, ..., :4, :5].clone() for maps in draw(4))

    def loss(boundary: Tensor, displacement: Tensor) -> Tensor:
        ratios = pair_losses(boundary, displacement, labels, 3).values()
        return torch.stack([ratio.total / ratio.count for ratio in ratios])

    assert torch.autograd.gradcheck(loss, (boundary.requires_grad_(), displacement.requires_grad_()))


def test_pair_losses__unsure_cells_have_no_displacement_to_learn_and_no_pair() -> None:
    boundary, displacement, labels = draw(5)
    displacement.requires_grad_()
    before = pair_losses(boundary, displacement, labels, 4)
    torch.stack([ratio.total for ratio in before.values()]).sum().backward()
    assert displacement.grad is not None
    assert not displacement.grad.mul(labels.eq(UNSURE)[:, None]).any() and displacement.grad.any()
    elsewhere = displacement.detach() + 100 * labels.eq(UNSURE)[:, None]
    after = pair_losses(boundary, elsewhere, labels, 4)
    assert all(torch.equal(before[name].total.detach(), after[name].total) for name in before)


def test_pair_losses__without_sure_cells_are_zero_of_nothing_and_have_a_graph() -> None:
    boundary, displacement, labels = draw(6, torch.float32)
    found = pair_losses(boundary.requires_grad_(), displacement.requires_grad_(), torch.full_like(labels, UNSURE), 4)
    assert all(float(ratio.total.detach()) == 0 and float(ratio.count) == 0 for ratio in found.values())
    torch.stack([ratio.total for ratio in found.values()]).sum().backward()
    assert boundary.grad is not None and not boundary.grad.any()


def test_pair_losses__certain_boundaries_stay_finite() -> None:
    _, displacement, labels = draw(7, torch.float32)
    boundary = torch.full((N, H, W), 200.0, requires_grad=True)
    found = pair_losses(boundary, displacement, labels, 3)
    torch.stack([ratio.total for ratio in found.values()]).sum().backward()
    assert boundary.grad is not None and boundary.grad.isfinite().all()
    total, count = found["affinity_foreground"]
    assert float(total.detach() / count) == pytest.approx(200)


def test_weights__positive_and_negative_pairs_count_the_same_and_so_do_background_and_foreground() -> None:
    """However rare: at a boundary of one half everywhere, every mean is the logarithm of 2."""
    _, displacement, labels = draw(8)
    labels = torch.zeros_like(labels)
    labels[:, 0, :2] = 1
    found = pair_losses(torch.zeros(N, H, W, dtype=torch.float64), displacement, labels, 4)
    assert float(found["affinity_background"].count) > 20 * float(found["affinity_foreground"].count) > 0
    means = {name: float(ratio.total / ratio.count) for name, ratio in found.items()}
    affinity = {name: mean for name, mean in means.items() if name.startswith("affinity")}
    assert affinity == pytest.approx(dict.fromkeys(affinity, math.log(2)))
    assert sum(LOSS_WEIGHTS[name] * mean for name, mean in affinity.items()) == pytest.approx(math.log(2))
    weights = {name.removeprefix("affinity_"): weight for name, weight in LOSS_WEIGHTS.items()}
    assert weights["negative"] == 2 * weights["background"] == 2 * weights["foreground"]


def test_straight_paths__hold_each_pair_once() -> None:
    ends = [path.end for path in straight_paths(10)]
    around = [(r, c) for r in range(-9, 10) for c in range(-9, 10) if 0 < r * r + c * c < 100]
    assert sorted([*ends, *((-r, -c) for r, c in ends)]) == sorted(around)


def test_sure_labels__takes_a_majority_and_leaves_the_rest_unsure() -> None:
    shares = torch.tensor([[0.6, 0.5, 0.0, 0.3], [0.4, 0.5, 0.0, 0.7]]).view(1, 2, 2, 2)
    assert sure_labels(shares).flatten().tolist() == [0, UNSURE, UNSURE, 1]
