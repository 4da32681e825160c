"""BSDNF: scores, thresholds from known mixtures, guards of the depression, state of the tracker."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from brnf.config import DenoiseConfig
from brnf.denoise import ThresholdTracker, depress, fit_threshold, pixel_scores, smooth_scores

CONFIG = DenoiseConfig()


def normal(count: int, mean: float, std: float, random_seed: int = 0) -> Tensor:
    return mean + std * torch.randn(count, generator=torch.Generator().manual_seed(random_seed))


def two_modes(count: int, share: float = 0.3) -> Tensor:
    """Scores whose modes at -2 (std 0.2) and 0 (std 0.3) alternate in no order."""
    low = int(share * count)
    scores = torch.cat([normal(low, -2.0, 0.2), normal(count - low, 0.0, 0.3, 1)])
    return scores[torch.randperm(count, generator=torch.Generator().manual_seed(2))]


def test_pixel_scores__likelihood_keeps_the_log_det_and_ratio_drops_it() -> None:
    class_log_prob, log_det = torch.tensor([[-4.0, -2.0, -9.0], [-1.0, -5.0, -3.0]]), torch.tensor([3.0, 4.0])
    labels = torch.tensor([1, 2])
    assert pixel_scores(class_log_prob, log_det, labels, 2, "likelihood").tolist() == [0.5, 0.5]
    assert pixel_scores(class_log_prob, log_det, labels, 2, "ratio").tolist() == [1.0, -1.0]
    assert pixel_scores(class_log_prob[:0], log_det[:0], labels[:0], 2, "ratio").shape == (0,)


def test_smooth_scores__matches_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 3, (2, 5, 6), generator=generator)
    expected = torch.empty_like(scores)
    for n, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(6)).tolist():
        window = (n, slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
        expected[n, y, x] = scores[window][labels[window] == labels[n, y, x]].mean()
    torch.testing.assert_close(smooth_scores(scores, labels), expected)


def test_smooth_scores__other_labels_do_not_leak() -> None:
    labels = torch.tensor([[[1, -1], [1, 1]]])
    scores = torch.tensor([[[1.0, math.inf], [2.0, 3.0]]])
    assert smooth_scores(scores, labels)[labels == 1].tolist() == [2.0, 2.0, 2.0]


def test_fit_threshold__finds_the_cut_between_two_modes() -> None:
    fit = fit_threshold(two_modes(4000), 0.05)
    # Where 0.3 N(-2, 0.2) equals 0.7 N(0, 0.3), found on a fine grid.
    grid = torch.linspace(-2, 0, 100001, dtype=torch.float64)
    low = math.log(0.3 / 0.2) - 0.5 * ((grid + 2) / 0.2) ** 2
    high = math.log(0.7 / 0.3) - 0.5 * (grid / 0.3) ** 2
    cut = grid[(low - high).abs().argmin()].item()
    assert fit.bimodal and fit.threshold == pytest.approx(cut, rel=0.05)
    assert fit.std == pytest.approx(two_modes(4000).std().item(), rel=0.01)


@pytest.mark.parametrize(
    "scores",
    [
        normal(3000, -1.0, 0.5),
        torch.rand(3000, generator=torch.Generator().manual_seed(0)),
        two_modes(4000, 0.01),
        two_modes(4000, 0.7),
        torch.full((600,), 0.25),
        torch.tensor([0.5]),
    ],
    ids=["one mode", "flat", "low mode too small", "low mode too large", "constant", "single"],
)
def test_fit_threshold__falls_back_to_the_quantile(scores: Tensor) -> None:
    fit = fit_threshold(scores, 0.05)
    assert not fit.bimodal and fit.threshold == pytest.approx(scores.double().quantile(0.05).item())
    assert math.isfinite(fit.std)


def test_fit_threshold__does_not_depend_on_order() -> None:
    scores = two_modes(1000)
    assert fit_threshold(scores, 0.05) == fit_threshold(scores.flip(0), 0.05)


class Scene:
    """Random base seeds of 3 images with 4 classes (class 3 only in the last), some cells outside the image."""

    def __init__(self, random_seed: int) -> None:
        generator = torch.Generator().manual_seed(random_seed)
        self.seed = torch.rand(3, 4, 12, 12, generator=generator)
        self.seed[:2, 3] = 0
        self.valid = torch.rand(3, 12, 12, generator=generator) > 0.1
        self.labels = self.seed.argmax(dim=1).masked_fill(~self.valid, -1)
        self.scores = torch.randn(3, 12, 12, generator=generator)
        self.thresholds, self.stds = torch.tensor([-math.inf, -1.0, 0.5, 9.0]), torch.tensor([1.0, 0.5, 0.7, 1.0])

    def depress(self, config: DenoiseConfig = CONFIG, images: slice = slice(None)) -> tuple[Tensor, Tensor]:
        seed, scores, labels, valid = (maps[images] for maps in (self.seed, self.scores, self.labels, self.valid))
        return depress(seed, scores, labels, valid, self.thresholds, self.stds, config)


@pytest.mark.parametrize("random_seed", range(4))
def test_depress__only_lowers_the_class_and_raises_the_background(random_seed: int) -> None:
    scene = Scene(random_seed)
    refined, depressed = scene.depress()
    assert depressed.any()
    assert (refined[:, 1:] <= scene.seed[:, 1:]).all() and (refined[:, 0] >= scene.seed[:, 0]).all()
    assert refined.min() >= 0 and refined.max() <= 1
    outside = ~scene.valid[:, None].expand_as(refined)
    assert torch.equal(refined[outside], scene.seed[outside])
    untouched = (scene.labels <= 0)[:, None].expand_as(refined)
    assert torch.equal(refined[untouched], scene.seed[untouched])
    promoted = (scene.seed.argmax(1) == 0) & (refined.argmax(1) != 0)
    assert not promoted.any()


@pytest.mark.parametrize("max_share", [0.0, 0.3, 1.0])
def test_depress__guards_cap_and_keep_some_of_every_class(max_share: float) -> None:
    scene = Scene(0)
    scene.thresholds[:] = 9.0
    refined, depressed = scene.depress(DenoiseConfig(max_share=max_share))
    for image in range(3):
        for c in range(1, 4):
            own = scene.labels[image] == c
            total, cut = int(own.sum()), int(depressed[image][own].sum())
            assert cut == max(0, min(math.floor(max_share * total), total - max(4, math.ceil(0.2 * total))))
            if 0 < cut < total:
                scores = scene.scores[image]
                assert scores[own & depressed[image]].max() < scores[own & ~depressed[image]].min()
            kept = own & (refined[image, c] == scene.seed[image, c])
            assert int(kept.sum()) == total - cut


def test_depress__small_class_is_never_emptied() -> None:
    seed = torch.zeros(1, 2, 3, 3)
    seed[0, 0], seed[0, 1, 0] = 0.4, 1.0
    labels, scores = seed.argmax(1), torch.full((1, 3, 3), -50.0)
    valid = torch.ones(1, 3, 3, dtype=torch.bool)
    refined, depressed = depress(seed, scores, labels, valid, torch.zeros(2), torch.ones(2), DenoiseConfig(max_share=1))
    assert not depressed.any() and torch.equal(refined, seed)


def test_depress__multiplies_by_the_soft_gate() -> None:
    seed = torch.stack([torch.full((1, 2, 10), 0.2), torch.full((1, 2, 10), 0.8)], dim=1)
    labels, valid = seed.argmax(1), torch.ones(1, 2, 10, dtype=torch.bool)
    scores = torch.full((1, 2, 10), 30.0)
    scores[0, 0, :4] = torch.tensor([-30.0, -0.1, 0.0, 0.1])
    refined, depressed = depress(seed, scores, labels, valid, torch.zeros(2), torch.ones(2), CONFIG)
    gate = torch.tensor([-30.0, -0.1, 0.0, 0.1]).div(0.25).sigmoid()
    foreground = 0.8 * (0.1 + 0.9 * gate)
    torch.testing.assert_close(refined[0, 1, 0, :4], foreground)
    torch.testing.assert_close(refined[0, 0, 0, :4], 0.2 + (1 - gate) * (1 - foreground - 0.2))
    torch.testing.assert_close(refined[0, :, 1], seed[0, :, 1])
    assert depressed[0, 0, :5].tolist() == [True, True, False, False, False] and int(depressed.sum()) == 2


def test_depress__images_do_not_depend_on_their_batch() -> None:
    scene = Scene(1)
    refined, depressed = scene.depress()
    for n in range(3):
        alone, alone_depressed = scene.depress(images=slice(n, n + 1))
        assert torch.equal(alone[0], refined[n]) and torch.equal(alone_depressed[0], depressed[n])


def test_depress__nothing_without_thresholds() -> None:
    scene = Scene(2)
    tracker = ThresholdTracker(4, CONFIG)
    scene.thresholds, scene.stds = tracker.thresholds, tracker.stds
    refined, depressed = scene.depress()
    assert torch.equal(refined, scene.seed) and not depressed.any()
    assert scene.depress(images=slice(0))[0].shape == (0, 4, 12, 12)


def classes(count: int, index: int) -> Tensor:
    return torch.full((count,), index)


def test_tracker__queue_is_first_in_first_out() -> None:
    tracker = ThresholdTracker(3, DenoiseConfig(queue_size=4))
    tracker.enqueue(torch.arange(6.0), torch.tensor([1, 2, 1, 1, 1, 1]))
    assert sorted(tracker.queue[1].tolist()) == [2, 3, 4, 5] and tracker.filled.tolist() == [0, 4, 1]
    tracker.enqueue(torch.tensor([math.nan, 7.0, -math.inf, 8.0]), classes(4, 1))
    assert sorted(tracker.queue[1].tolist()) == [4, 5, 7, 8]
    tracker.enqueue(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert tracker.filled.tolist() == [0, 4, 1]


def test_tracker__fits_and_moves_slowly() -> None:
    tracker = ThresholdTracker(2, CONFIG)
    assert not tracker.ready
    tracker.refit()
    assert not tracker.ready
    tracker.enqueue(two_modes(2000), classes(2000, 1))
    tracker.refit()
    first = fit_threshold(two_modes(2000), CONFIG.fallback_quantile)
    assert tracker.ready and tracker.thresholds[0] == -math.inf
    assert tracker.thresholds[1].item() == pytest.approx(first.threshold)
    assert tracker.stds[1].item() == pytest.approx(first.std)
    tracker.enqueue(two_modes(8192) + 1, classes(8192, 1))
    tracker.refit()
    second = fit_threshold(two_modes(8192) + 1, CONFIG.fallback_quantile)
    assert tracker.thresholds[1].item() == pytest.approx(0.9 * first.threshold + 0.1 * second.threshold)


def test_tracker__rare_classes_take_the_pooled_threshold() -> None:
    tracker = ThresholdTracker(5, CONFIG)
    tracker.enqueue(two_modes(4000), classes(4000, 1))
    rare = 10 + 3 * two_modes(200)
    tracker.enqueue(rare, classes(200, 2))
    tracker.enqueue(normal(5, 0.0, 1.0), classes(5, 3))
    tracker.refit()
    # Class 2 has class 1's distribution on another scale, so that its threshold is class 1's on that scale.
    assert tracker.thresholds[2].item() == pytest.approx(10 + 3 * tracker.thresholds[1].item(), abs=0.3)
    assert tracker.stds[2].item() == pytest.approx(3 * tracker.stds[1].item(), rel=0.1)
    assert tracker.thresholds[[3, 4]].tolist() == [-math.inf, -math.inf]


def test_tracker__state_dict_round_trip_goes_on_alike() -> None:
    tracker, restored = ThresholdTracker(3, CONFIG), ThresholdTracker(3, CONFIG)
    tracker.enqueue(two_modes(1000), classes(1000, 1))
    tracker.refit()
    restored.load_state_dict(tracker.state_dict())
    for copy in (tracker, restored):
        copy.enqueue(normal(900, 0.0, 1.0), classes(900, 2))
        copy.refit()
    assert bool(restored.ready)
    assert all(torch.equal(buffer, restored.state_dict()[name]) for name, buffer in tracker.state_dict().items())
