"""Every loss against its formula written as loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.losses import Ratio, classification, discriminative, flow_nll, info_nce, masked_l1


def draw(*shape: int, random_seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed), dtype=torch.float64)


def assert_ratio(ratio: Ratio, total: float, count: float) -> None:
    assert ratio.total.item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert ratio.count.item() == pytest.approx(count, rel=1e-9, abs=1e-12)


def test_classification__matches_torch() -> None:
    scores, tags = draw(5, 4), draw(5, 4, random_seed=1) > 0
    ratio = classification(scores, tags)
    assert_ratio(ratio, 5 * F.multilabel_soft_margin_loss(scores, tags.double()).item(), 5)


def test_masked_l1__broadcasts_its_weight() -> None:
    a, b = draw(2, 3, 4, 4), draw(2, 3, 4, 4, random_seed=1)
    weight = draw(2, 3, 1, 1, random_seed=2) > 0
    total, count = 0.0, 0
    for n in range(2):
        for c in range(3):
            if weight[n, c, 0, 0]:
                total += (a[n, c] - b[n, c]).abs().sum().item()
                count += 16
    assert_ratio(masked_l1(a, b, weight), total, count)


def allowed_sets(count: int) -> Tensor:
    allowed = draw(count, 4, random_seed=5) > 0
    allowed[:, 0] = True
    return allowed


def test_flow_nll__matches_loop() -> None:
    class_log_prob, log_det, weights = 5 * draw(6, 4), draw(6, random_seed=1), draw(6, random_seed=2).abs()
    labels, allowed = torch.tensor([0, -1, 3, -1, -1, 2]), allowed_sets(6)
    total = 0.0
    for p in range(6):
        if labels[p] >= 0:
            log_prob = class_log_prob[p, labels[p]].item()
        else:
            density = class_log_prob[p][allowed[p]].exp().mean()
            log_prob = math.log(density.item())
        total -= weights[p].item() * (log_prob + log_det[p].item())
    assert_ratio(flow_nll(class_log_prob, log_det, labels, allowed, weights), total, weights.sum().item())


def test_flow_nll__gradients_stay_off_classes_not_allowed() -> None:
    class_log_prob = (1e4 * draw(6, 4)).requires_grad_()
    allowed = allowed_sets(6)
    flow_nll(class_log_prob, torch.zeros(6), torch.full((6,), -1), allowed, torch.ones(6)).total.backward()
    gradient = class_log_prob.grad
    assert gradient is not None and gradient.isfinite().all() and not gradient[~allowed].any()
    torch.testing.assert_close(gradient.sum(1), -torch.ones(6, dtype=torch.float64))


def test_discriminative__leaves_out_unlabelled() -> None:
    class_log_prob, weights = draw(6, 4), draw(6, random_seed=2).abs()
    labels = torch.tensor([0, -1, 3, -1, 1, 2])
    known = labels >= 0
    total = (F.cross_entropy(class_log_prob[known], labels[known], reduction="none") * weights[known]).sum().item()
    assert_ratio(discriminative(class_log_prob, labels, weights), total, weights[known].sum().item())


def brute_force_info_nce(
    anchors: Tensor, anchor_classes: Tensor, keys: Tensor, key_classes: Tensor, key_weights: Tensor, temperature: float
) -> tuple[float, int]:
    """The formula of the docstring, one exponential at a time."""
    total, count = 0.0, 0
    for q, c in zip(anchors, anchor_classes, strict=True):
        positives = [(k, w) for k, kc, w in zip(keys, key_classes, key_weights, strict=True) if kc == c and w > 0]
        negatives = [k for k, kc in zip(keys, key_classes, strict=True) if kc != c]
        if not positives or not negatives:
            continue
        against = sum(math.exp(q @ k / temperature) for k in negatives)
        norm = sum(w.item() for _, w in positives)
        for k, w in positives:
            own = math.exp(q @ k / temperature)
            total -= w.item() / norm * math.log(own / (own + against))
        count += 1
    return total, count


def contrast() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Anchors of classes 1 to 4 and keys of classes 0 to 2: classes 3 and 4 have no positives."""
    anchors, keys = F.normalize(draw(6, 5), dim=1), F.normalize(draw(20, 5, random_seed=1), dim=1)
    weights = draw(20, random_seed=2).abs()
    weights[:2] = 0
    return anchors, torch.tensor([1, 2, 1, 3, 4, 2]), keys, torch.arange(20) % 3, weights


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce__matches_brute_force(temperature: float) -> None:
    total, count = brute_force_info_nce(*contrast(), temperature)
    assert count == 4
    assert_ratio(info_nce(*contrast(), temperature), total, count)


def test_info_nce__does_not_depend_on_lengths() -> None:
    anchors, anchor_classes, keys, key_classes, weights = contrast()
    scaled = info_nce(3 * anchors, anchor_classes, 0.2 * keys, key_classes, 7 * weights, 0.1)
    torch.testing.assert_close(scaled.total, info_nce(*contrast(), 0.1).total)


def test_info_nce__gradients_reach_anchors_only() -> None:
    anchors, anchor_classes, keys, key_classes, weights = contrast()
    anchors.requires_grad_()
    keys.requires_grad_()
    info_nce(anchors, anchor_classes, keys, key_classes, weights, 0.1).total.backward()
    assert keys.grad is None
    assert anchors.grad is not None and anchors.grad.isfinite().all()
    assert anchors.grad[[0, 1, 2, 5]].any(dim=1).all() and not anchors.grad[[3, 4]].any()


def test_info_nce__one_class_only_counts_nothing() -> None:
    anchors = draw(3, 5).requires_grad_()
    classes = torch.ones(3, dtype=torch.long)
    ratio = info_nce(anchors, classes, draw(4, 5), torch.ones(4, dtype=torch.long), torch.ones(4), 0.1)
    assert_ratio(ratio, 0, 0)
    ratio.total.backward()
    assert anchors.grad is not None and not anchors.grad.any()


def test_info_nce__full_precision_under_autocast() -> None:
    anchors, anchor_classes, keys, key_classes, weights = contrast()
    arguments = (anchors.float(), anchor_classes, keys.float(), key_classes, weights.float(), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = info_nce(*arguments)
    assert cast.total.dtype == torch.float32 and torch.equal(cast.total, info_nce(*arguments).total)


def no_rows(name: str) -> tuple[Tensor, Ratio]:
    """A loss of no rows, and the leaf its total hangs on."""
    classes = torch.zeros(0, dtype=torch.long)
    leaf = torch.zeros((0, 4), requires_grad=True)
    empty, allowed = torch.zeros(0), torch.zeros((0, 4), dtype=torch.bool)
    match name:
        case "flow_nll":
            return leaf, flow_nll(leaf, empty, classes, allowed, empty)
        case "discriminative":
            return leaf, discriminative(leaf, classes, empty)
        case "classification":
            return leaf, classification(leaf, torch.zeros((0, 4)))
        case "no anchors":
            return leaf, info_nce(leaf, classes, torch.ones(2, 4), torch.tensor([0, 1]), torch.ones(2), 0.1)
        case "no keys":
            leaf = torch.ones((2, 4), requires_grad=True)
            return leaf, info_nce(leaf, torch.tensor([0, 1]), torch.zeros((0, 4)), classes, empty, 0.1)
        case _:
            leaf = torch.zeros((0, 3, 2, 2), requires_grad=True)
            return leaf, masked_l1(leaf, torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2))


@pytest.mark.parametrize(
    "name", ["flow_nll", "discriminative", "classification", "no anchors", "no keys", "masked_l1"]
)
def test_no_rows__total_zero_with_a_graph(name: str) -> None:
    leaf, ratio = no_rows(name)
    assert_ratio(ratio, 0, 0)
    ratio.total.backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and not leaf.grad.any()


def test_ratios__add_up_over_ranks() -> None:
    anchors, anchor_classes, keys, key_classes, weights = contrast()
    whole = info_nce(anchors, anchor_classes, keys, key_classes, weights, 0.1)
    parts = [info_nce(anchors[s], anchor_classes[s], keys, key_classes, weights, 0.1) for s in (slice(4), slice(4, 6))]
    assert_ratio(whole, sum(p.total.item() for p in parts), sum(p.count.item() for p in parts))
