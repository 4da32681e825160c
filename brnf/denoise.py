"""BSDNF: pixels of the base seed that are unlikely under the flow f2 are depressed."""

# N images, C classes incl. background, H W cells, P pixels, Q scores

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brnf.config import DenoiseConfig
from brnf.models.memory_bank import push, rank_in_group
from brnf.models.mixture import log_prob_of

EM_ITERATIONS = 50
ASHMAN_D = 2.0  # two Gaussians this far apart are clearly separated (Ashman et al. 1994)
LOW_MODE_SHARE = (0.02, 0.5)
MIN_SCORES = 512  # fewer are no basis for a threshold of one's own
MIN_POOLED = 32  # fewer do not give a median and a deviation to place the pooled threshold by
EMA = 0.9
MIN_LEFT_PIXELS, MIN_LEFT_SHARE = 4, 0.2  # of a class's seed pixels in an image


def pixel_scores(
    class_log_prob: Tensor, log_det: Tensor, labels: Tensor, dim: int, kind: Literal["likelihood", "ratio"]
) -> Tensor:
    """How likely each pixel is under the class of its base seed, in nats per dimension.

    Args:
        class_log_prob: log p(z|c) (P,C).
        log_det: log |det dz/du| (P,); needed by the likelihood, cancels in the ratio.
        labels: Class of the base seed (P,).
        dim: Features D.
        kind: "likelihood" log p(u|c), or "ratio" log p(u|c) - log p(u|background).

    Returns:
        Scores (P,).
    """
    own_P = log_prob_of(class_log_prob, labels)
    return (own_P + log_det if kind == "likelihood" else own_P - class_log_prob[:, 0]) / dim


def smooth_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of scores (N,H,W) over the 3x3 neighbours with the same label (N,H,W); label cells to be left out -1."""
    neighbours = F.pad(scores, (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    # -2 is no label, so that nothing outside the image counts.
    same = F.pad(labels, (1, 1, 1, 1), value=-2).unfold(1, 3, 1).unfold(2, 3, 1) == labels[..., None, None]
    return neighbours.where(same, 0).sum(dim=(-2, -1)) / same.sum(dim=(-2, -1))


class Threshold(NamedTuple):
    """Where to cut a class's scores; std is their standard deviation."""

    threshold: float
    std: float
    bimodal: bool


def fit_threshold(scores: Tensor, fallback_quantile: float) -> Threshold:
    """Cut scores (Q,) between their two modes or, where they have one only, at a low quantile."""
    ordered = scores.detach().double().cpu().sort().values
    std = ordered.std(correction=0).item()
    if std > 0 and len(ordered) >= 4:
        cut = crossing(two_gaussians(ordered))
        if cut is not None:
            return Threshold(cut, std, True)
    return Threshold(ordered.quantile(fallback_quantile).item(), std, False)


class TwoGaussians(NamedTuple):
    """A mixture of two Gaussians on the line, low mean first: each field has two entries."""

    share: list[float]
    mean: list[float]
    std: list[float]


def two_gaussians(ordered: Tensor) -> TwoGaussians:
    """Fit ascending scores (Q,), not all equal, by EM that starts from Otsu's split."""
    count, centre, scale = len(ordered), ordered.mean(), ordered.std(correction=0)
    x = (ordered - centre) / scale  # moments about 0 are safe now
    powers_Q3 = torch.stack([torch.ones_like(x), x, x.square()], dim=1)
    left = torch.arange(1, count, dtype=x.dtype)
    # Otsu: the variance between both sides of a split, up to a factor, as x sums to 0.
    between = x.cumsum(0)[:-1].square() / (left * (count - left))
    weight_Q = (torch.arange(count) > between.argmax()).to(x.dtype)  # of the high Gaussian
    share, mean, std = x.new_zeros(3, 2)
    for _ in range(EM_ITERATIONS):
        moments_23 = torch.stack([1 - weight_Q, weight_Q]) @ powers_Q3
        mass = moments_23[:, 0].clamp(min=1e-9)
        share, mean = mass / count, moments_23[:, 1] / mass
        std = (moments_23[:, 2] / mass - mean.square()).clamp(min=1e-6).sqrt()  # must not collapse onto equal scores
        precision = std.pow(-2)
        # The log-density of a weighted Gaussian is a quadratic in x; high minus low gives the log-odds.
        quadratics_23 = torch.stack(
            [share.log() - std.log() - 0.5 * precision * mean.square(), precision * mean, -0.5 * precision], dim=1
        )
        weight_Q = (powers_Q3 @ (quadratics_23[1] - quadratics_23[0])).sigmoid()
    order = mean.argsort()
    mean, std = centre + scale * mean, scale * std
    return TwoGaussians(share[order].tolist(), mean[order].tolist(), std[order].tolist())


def crossing(modes: TwoGaussians) -> float | None:
    """The point between the means where both weighted densities are equal; none if they are not two modes."""
    (low, high), (low_std, high_std) = modes.mean, modes.std
    separation = math.sqrt(2) * (high - low) / math.hypot(low_std, high_std)
    if separation <= ASHMAN_D or not LOW_MODE_SHARE[0] < modes.share[0] < LOW_MODE_SHARE[1]:
        return None

    def log_odds(x: float) -> float:
        low_log, high_log = (
            math.log(share / std) - 0.5 * ((x - mean) / std) ** 2
            for share, mean, std in zip(*modes, strict=True)
        )
        return low_log - high_log

    if log_odds(low) <= 0 or log_odds(high) >= 0:
        return None
    for _ in range(60):  # bisection: the log-odds change sign once between the means
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log_odds(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def depress(
    seed: Tensor,
    scores: Tensor,
    labels: Tensor,
    valid: Tensor,
    thresholds: Tensor,
    stds: Tensor,
    config: DenoiseConfig,
) -> tuple[Tensor, Tensor]:
    """Multiply down the base seed where its class is unlikely, and let the background rise there.

    In each image only the lowest scores of a class may be touched: at most max_share of its pixels, and at least
    max(4, 20 %) of them stay as they are. No foreground map rises, and cells outside `valid` keep all their values.

    Args:
        seed: Base seed (N,C,H,W) in [0, 1].
        scores: Scores (N,H,W) of the seed's class, in nats per dimension.
        labels: Class of the seed (N,H,W); the background and negative labels are left alone.
        valid: Cells inside the image (N,H,W), bool.
        thresholds: Cut of each class (C,); -inf touches nothing.
        stds: Standard deviation of each class's scores (C,).
        config: Floor, softness and max_share.

    Returns:
        Refined seed (N,C,H,W), and where a score below its threshold was depressed (N,H,W), bool.

    Source:
        The paper's overview figure; formulas ours. The background rises with 1 - g, not wherever 1 - max exceeds it,
        so that pixels with a likely class keep their seed.
    """
    classes_NHW = labels.clamp(min=0)
    kappa_C = (config.softness * stds).clamp(min=1e-6)
    gate_NHW = ((scores - thresholds[classes_NHW]) / kappa_C[classes_NHW]).sigmoid()
    touched_NHW = lowest_scores(scores, labels, valid & (labels > 0), seed.shape[1], config.max_share)
    gate_NHW = gate_NHW.where(touched_NHW, 1)

    index_N1HW = classes_NHW[:, None]
    factor_N1HW = config.floor + (1 - config.floor) * gate_NHW[:, None]
    refined = seed.scatter(1, index_N1HW, seed.gather(1, index_N1HW) * factor_N1HW)
    missing_NHW = (1 - refined[:, 1:].amax(dim=1) - seed[:, 0]).clamp(min=0)
    refined[:, 0] = seed[:, 0] + (1 - gate_NHW) * missing_NHW
    return refined, gate_NHW < 0.5


def lowest_scores(scores: Tensor, labels: Tensor, foreground: Tensor, num_classes: int, max_share: float) -> Tensor:
    """The pixels (N,H,W) that the guards let BSDNF touch: the lowest scores of each image and class."""
    image_NHW = torch.arange(len(labels), device=labels.device)[:, None, None].expand_as(labels)
    groups_P = (image_NHW * num_classes + labels)[foreground]
    order = scores[foreground].argsort(stable=True)
    ranks, counts = rank_in_group(groups_P[order], len(labels) * num_classes)
    left = (MIN_LEFT_SHARE * counts).ceil().clamp(min=MIN_LEFT_PIXELS)
    limit = torch.minimum((max_share * counts).floor(), counts - left)
    touched_P = torch.empty_like(groups_P, dtype=torch.bool)
    touched_P[order] = ranks < limit[groups_P[order]]
    touched_NHW = torch.zeros_like(foreground)
    touched_NHW[foreground] = touched_P
    return touched_NHW


class ThresholdTracker(nn.Module):
    """Queues of recent scores a class and the thresholds fitted to them. All of its state is in buffers.

    Args:
        num_classes: Classes C, background included (which never gets a threshold).
        config: Queue size and fallback quantile.
    """

    queue: Tensor
    filled: Tensor
    pointer: Tensor
    thresholds: Tensor
    stds: Tensor
    ready: Tensor

    def __init__(self, num_classes: int, config: DenoiseConfig) -> None:
        super().__init__()
        self.fallback_quantile = config.fallback_quantile
        self.register_buffer("queue", torch.zeros(num_classes, config.queue_size))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("thresholds", torch.full((num_classes,), -math.inf))
        self.register_buffer("stds", torch.ones(num_classes))
        self.register_buffer("ready", torch.tensor(False))

    def enqueue(self, scores: Tensor, classes: Tensor) -> None:
        """Add scores (P,) of foreground classes (P,), in order; the oldest leave. Infinite ones and NaN stay out."""
        finite = scores.isfinite()
        push(self.queue, self.filled, self.pointer, scores[finite], classes[finite])

    @torch.no_grad()
    def refit(self) -> None:
        """Move every threshold a tenth of the way to its new fit (all the way the first time).

        Classes with too few scores take the threshold of all classes' scores together, each standardised by its
        median and median absolute deviation. A class with hardly any keeps -inf, which depresses nothing.
        """
        for index, fit in self.fits().items():
            if self.thresholds[index].isfinite():
                self.thresholds[index] = EMA * self.thresholds[index] + (1 - EMA) * fit.threshold
                self.stds[index] = EMA * self.stds[index] + (1 - EMA) * fit.std
            else:
                self.thresholds[index], self.stds[index] = fit.threshold, fit.std
        self.ready.copy_(self.thresholds.isfinite().any())

    def fits(self) -> dict[int, Threshold]:
        """The fit of every foreground class that has enough scores for one."""
        least = min(MIN_SCORES, self.queue.shape[1])
        queue, filled = self.queue.double().cpu(), self.filled.tolist()
        scores = {c: queue[c, : filled[c]] for c in range(1, len(filled)) if filled[c] >= min(MIN_POOLED, least)}
        median = {c: values.median() for c, values in scores.items()}
        deviation = {c: (values - median[c]).abs().median().clamp(min=1e-6) for c, values in scores.items()}
        common = {c: values for c, values in scores.items() if len(values) >= least}
        fits = {c: fit_threshold(values, self.fallback_quantile) for c, values in common.items()}
        rare = scores.keys() - common.keys()
        pool = [(values - median[c]) / deviation[c] for c, values in scores.items()]
        if rare and sum(map(len, pool)) >= least:
            pooled = fit_threshold(torch.cat(pool), self.fallback_quantile)
            for c in rare:
                place = float(median[c] + deviation[c] * pooled.threshold)
                fits[c] = Threshold(place, float(deviation[c] * pooled.std), pooled.bimodal)
        return fits
