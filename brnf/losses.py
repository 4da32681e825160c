"""Losses of the base and of BRNF: pure functions that give numerator and denominator apart.

The step sums both over ranks before it divides, so that the loss does not depend on how rows are split over ranks.
Each works on no rows at all: a total of 0 that still has a graph, a count of 0.
"""

# N images, C classes incl. background, H W cells, P pixels, A anchors, R keys, D features

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from brnf.models.flow import full_precision
from brnf.models.mixture import log_prob_of


class Ratio(NamedTuple):
    """A loss as sum and weight, both scalars; the loss is total / count."""

    total: Tensor
    count: Tensor


def classification(scores: Tensor, tags: Tensor) -> Ratio:
    """Multi-label soft margin of scores (N,C-1), logits, against multi-hot tags (N,C-1); mean over classes, sum over N.

    Source:
        SIPE, https://github.com/chenqi1126/SIPE.
    """
    scores = full_precision(scores)
    per_image_N = F.binary_cross_entropy_with_logits(scores, tags.to(scores.dtype), reduction="none").mean(dim=1)
    return Ratio(per_image_N.sum(), scores.new_tensor(len(scores)))


def masked_l1(a: Tensor, b: Tensor, weight: Tensor) -> Ratio:
    """Weighted |a - b| of maps (N,C,H,W); the weight is broadcast to them and may be bool.

    Source:
        Form: SIPE and PSDPM; the mean over weighted entries in place of all is ours.
    """
    distance = (full_precision(a) - full_precision(b)).abs()
    weight = weight.to(distance.dtype).expand_as(distance)
    return Ratio((weight * distance).sum(), weight.sum())


def flow_nll(class_log_prob: Tensor, log_det: Tensor, labels: Tensor, allowed: Tensor, weights: Tensor) -> Ratio:
    """Negative log-likelihood of pixels under a flow with a mixture prior, in nats (not divided by D).

    Args:
        class_log_prob: log p(z|c) (P,C).
        log_det: log |det dz/du| (P,).
        labels: Class (P,), or -1 where only the image's labels are known.
        allowed: Classes (P,C), bool, that a pixel without a label is an equal mixture of.
        weights: Weight of each pixel (P,).

    Returns:
        Sum of weight * nll, sum of weights.

    Source:
        DDFP, https://github.com/Gavinwxy/DDFP, where all classes are allowed.
    """
    known_P = log_prob_of(class_log_prob, labels.clamp(min=0))
    lowest = torch.finfo(class_log_prob.dtype).min  # not -inf: rows without NaN in the backward pass
    num_allowed_P = allowed.sum(dim=1).to(class_log_prob.dtype)
    mixed_P = class_log_prob.masked_fill(~allowed, lowest).logsumexp(dim=1) - num_allowed_P.log()
    nll_P = -(torch.where(labels >= 0, known_P, mixed_P) + log_det)
    return Ratio((weights * nll_P).sum(), weights.sum())


def discriminative(class_log_prob: Tensor, labels: Tensor, weights: Tensor) -> Ratio:
    """Cross-entropy of the posterior over all classes, in nats, on pixels with a label.

    Args:
        class_log_prob: log p(z|c) (P,C).
        labels: Class (P,); pixels with -1 are left out of total and count.
        weights: Weight of each pixel (P,).

    Source:
        FlowGMM's semi-supervised trainer, https://github.com/izmailovpavel/flowgmm.
    """
    weights = weights * (labels >= 0)
    entropy_P = -log_prob_of(class_log_prob.log_softmax(dim=1), labels.clamp(min=0))
    return Ratio((weights * entropy_P).sum(), weights.sum())


def info_nce(
    anchors: Tensor, anchor_classes: Tensor, keys: Tensor, key_classes: Tensor, key_weights: Tensor, temperature: float
) -> Ratio:
    """Supervised InfoNCE with one positive a term; gradients reach the anchors only.

    Each anchor q gives the mean over its positives k+, weighted by key_weights, of
    -log[exp(q.k+/t) / (exp(q.k+/t) + sum over negatives of exp(q.k-/t))]. Negatives are the keys of other classes.
    Anchors without positives or without negatives are left out of total and count.

    Args:
        anchors: (A,D), brought to unit length here.
        anchor_classes: (A,).
        keys: (R,D), brought to unit length here.
        key_classes: (R,).
        key_weights: (R,), 0 or more; weigh positives only.
        temperature: t.

    Source:
        Temperature and pixel-to-prototype form after PPC, https://arxiv.org/abs/2110.07110.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors_AD = F.normalize(full_precision(anchors), dim=1)
        keys_RD = F.normalize(keys.detach().to(anchors_AD.dtype), dim=1)
        logits_AR = anchors_AD @ keys_RD.T / temperature
    positive_AR = anchor_classes[:, None] == key_classes
    negatives_A = logits_AR.masked_fill(positive_AR, torch.finfo(logits_AR.dtype).min).logsumexp(dim=1)
    term_AR = F.softplus(negatives_A[:, None] - logits_AR)
    weight_AR = positive_AR * key_weights.to(logits_AR.dtype)
    weight_A = weight_AR.sum(dim=1)
    usable_A = (weight_A > 0) & (~positive_AR).any(dim=1)
    mean_A = (weight_AR * term_AR).sum(dim=1) / weight_A.masked_fill(~usable_A, 1)
    return Ratio((mean_A * usable_A).sum(), usable_A.sum().to(logits_AR.dtype))
