"""One training step of the base (SIPE) and of BRNF, as plain torch in one process.

Ray Train, DDP and precision wrap it from outside through `Wrap`. Three optimizers, three backward passes: the
flows see detached features, the network sees the flows' outputs as constants (Qiu et al. 2025, overview figure).

N images, C classes with background at 0, D features, H W cells, P = N*H*W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brnf import losses
from brnf.config import BrnfConfig, FlowConfig, OptimConfig, RunConfig
from brnf.denoise import depress, pixel_scores, smooth_scores
from brnf.losses import Ratio
from brnf.models.brnf import Brnf, cells
from brnf.models.cam import class_maps, correlation_feature, normalise_maps, prototype_maps
from brnf.training import selection
from brnf.training.collectives import from_first_rank, gather_rows, global_means, sum_over_ranks
from brnf.training.device import autocast
from brnf.training.health import gradient_shares
from brnf.training.schedule import exponential, ramp, set_network_rates
from brnf.training.state import BrnfState

Wrap = Callable[[nn.Module], nn.Module]
Metrics = dict[str, Tensor]

CONFIDENT_MARGIN = 0.05
MIN_REGION_CELLS = 8


@dataclass(frozen=True)
class Batch:
    """Images of one rank, on the step's device."""

    images: Tensor
    """(N, 3, S, S) uint8 RGB."""
    valid: Tensor
    """(N, H, W) bool, cells wholly inside the image."""
    allowed: Tensor
    """(N, C) bool, the image's tags and background."""
    keys: Tensor
    """(N,) int64 on the CPU, one random key per image and epoch."""
    seed: Tensor | None = None
    """(N, C, H, W) base seed in [0, 1]; zero outside `allowed` and the image."""


class Maps(NamedTuple):
    """What the network sees in a batch."""

    features: Tensor
    """(N, D, H, W), with gradient."""
    cam: Tensor
    """(N, C-1, H, W) raw activations, with gradient."""
    scores: Tensor
    """(N, C-1) logits of the tags."""
    classifier: Tensor
    """(N, C, H, W) classifier CAM in [0, 1]."""
    prototype: Tensor
    """(N, C, H, W) prototype CAM in [0, 1]."""
    prototypes: Tensor
    """(N, C, D)."""


class Pixels(NamedTuple):
    """A batch as pixels, for flows."""

    features: Tensor
    """(P, D) standardised, detached."""
    image: Tensor
    """(P,) index of the image."""
    valid: Tensor
    """(P,) bool."""
    allowed: Tensor
    """(P, C) bool."""
    draws: selection.Draws


def unwrapped(module: nn.Module) -> nn.Module:
    """The `Wrap` of one process."""
    return module


def network_optimizer(model: Brnf, config: OptimConfig) -> torch.optim.SGD:
    """SGD over the backbone and, at its own rate, the new layers."""
    backbone, new = model.network.parameter_groups()
    groups = [{"params": backbone, "lr": config.lr_backbone}, {"params": new, "lr": config.lr_new}]
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def flow_optimizer(flow: nn.Module, config: FlowConfig) -> torch.optim.Adam:
    """Adam with DDFP's betas."""
    return torch.optim.Adam(flow.parameters(), lr=config.lr, betas=(0.5, 0.9))


def finish_step(loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float) -> Tensor:
    """Backward, clip, update. Returns the gradient norm before clipping.

    Raises:
        FloatingPointError: If loss or gradient is not finite; nothing has been updated then.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if not torch.isfinite(norm + loss.detach()):
        raise FloatingPointError(
            f"loss ({loss.item():g}) or gradient norm ({norm.item():g}) is not finite; lower the learning rate of "
            "this part (base.optim, brnf.optim, or brnf.f1.lr and brnf.f2.lr) or flow.clamp"
        )
    optimizer.step()
    return norm


def read_maps(network: nn.Module, batch: Batch, config: RunConfig) -> Maps:
    """Network, class maps, prototypes, prototype maps of a batch."""
    with autocast(batch.images.device, config.compute.precision):
        output = network(batch.images)
    classifier = class_maps(output.cam, batch.allowed, config.cam.mask_absent) * batch.valid[:, None]
    found = prototype_maps(
        output.features,
        correlation_feature(output, config.cam),
        classifier.detach(),
        batch.allowed,
        batch.valid,
        config.cam,
    )
    return Maps(output.features, output.cam, output.scores, classifier, normalise_maps(found.maps), found.prototypes)


class BaseStep:
    """A step of the base network: classification and general-specific consistency (SIPE sections 3.3, 3.4).

    Args:
        model: `Brnf(method="sipe")` on its device.
        config: Resolved configuration.
        total_steps: Steps of the run; schedules are fractions of it.
        wrap: Makes a module's forward synchronise gradients (DDP); the identity in one process.
    """

    def __init__(self, model: Brnf, config: RunConfig, total_steps: int, wrap: Wrap = unwrapped) -> None:
        self.model, self.config, self.total_steps = model, config, total_steps
        self.network = wrap(model.network)
        self.optim = self.optim_config()
        self.optimizers: dict[str, torch.optim.Optimizer] = {"network": network_optimizer(model, self.optim)}

    def optim_config(self) -> OptimConfig:
        """The part of the configuration that the network is optimised by."""
        return self.config.base.optim

    def __call__(self, batch: Batch, step: int) -> Metrics:
        """Train on the batch of step `step` (from 0); returns global means of what was measured."""
        maps = read_maps(self.network, batch, self.config)
        difference = (maps.classifier - maps.prototype).abs()
        ratios = {
            "classification": losses.classification(maps.scores, batch.allowed[:, 1:].float()),
            "consistency": Ratio(difference.sum(), difference.new_tensor(float(difference.numel()))),
        }
        terms, means = global_means(ratios)
        loss = terms["classification"] + self.config.base.gsc_weight * terms["consistency"]
        return means | {"gradient_norm": self.update_network(loss, step / self.total_steps)}

    def update_network(self, loss: Tensor, progress: float) -> Tensor:
        """Step the network's optimizer at this point of its schedule."""
        set_network_rates(self.optimizers["network"], self.optim, progress)
        return finish_step(loss, self.optimizers["network"], self.optim.clip_norm)


class BrnfStep(BaseStep):
    """A step of BRNF.

    Args:
        model: On its device.
        config: Resolved configuration.
        total_steps: Steps of the run.
        wrap: As in BaseStep; also wraps both flows.
    """

    model: BrnfState

    def __init__(self, model: BrnfState, config: RunConfig, total_steps: int, wrap: Wrap = unwrapped) -> None:
        super().__init__(model, config, total_steps, wrap)
        assert model.f1 is not None
        self.flows = {"f1": wrap(model.f1), "f2": wrap(model.f2)}
        self.options: BrnfConfig = config.brnf
        self.optimizers["f1"] = flow_optimizer(model.f1, config.brnf.f1)
        self.optimizers["f2"] = flow_optimizer(model.f2, config.brnf.f2)

    def optim_config(self) -> OptimConfig:
        return self.config.brnf.optim

    def __call__(self, batch: Batch, step: int) -> Metrics:
        assert batch.seed is not None
        options, schedule, progress = self.options, self.options.schedule, step / self.total_steps
        maps = read_maps(self.network, batch, self.config)
        measured: Metrics = {}
        guide, target, contrast = batch.seed, None, None
        use = ramp(progress, schedule.start_use, schedule.ramp)
        if progress >= schedule.start_flows:
            pixels = self._pixels(maps, batch, progress)
            measured |= self._train_f1(maps, batch, pixels, step)
            if options.denoise.enabled:
                measured |= self._train_f2(batch, pixels, progress)
                guide, depressed = self._denoise(batch, pixels, step, use)
                measured |= depressed
            if options.contrast.weight > 0:
                self._fill_banks(maps, batch, step)
                measured |= self._bank_fill()
        if use > 0 and options.calibration.weight > 0:
            target = self.model.posterior(maps.features, batch.allowed)
        if ramp(progress, schedule.start_contrast, 0.0) > 0 and options.contrast.weight > 0:
            contrast = self._contrast(maps, batch)
        terms, means = self._network_losses(maps, batch, guide, target, contrast, progress)
        if (step + 1) % self.config.compute.log_every == 0:
            measured |= gradient_shares(terms, (maps.features, maps.cam))
        self._count_activity(target is not None, measured.get("depressed_share"), contrast)
        return measured | means | {"gradient_norm": self.update_network(torch.stack([*terms.values()]).sum(), progress)}

    def _network_losses(
        self, maps: Maps, batch: Batch, guide: Tensor, target: Tensor | None, contrast: Ratio | None, progress: float
    ) -> tuple[Metrics, Metrics]:
        """Weighted losses of the network by name, to be summed; and their unweighted means over the global batch."""
        options, schedule = self.options, self.options.schedule
        weight_NCHW = (batch.allowed[:, :, None, None] & batch.valid[:, None]).float()
        guided_NCHW = weight_NCHW * (guide.amax(dim=(1, 2, 3), keepdim=True) > 0)  # an image may have no base seed
        ratios = {
            "classification": losses.classification(maps.scores, batch.allowed[:, 1:].float()),
            "guidance": losses.masked_l1(maps.prototype, guide, guided_NCHW),
            "consistency": losses.masked_l1(maps.classifier, maps.prototype, weight_NCHW),
        }
        weights = {
            "classification": 1.0,
            "guidance": options.guidance_weight,
            "consistency": options.consistency_weight,
        }
        if target is not None:
            ratios["calibration"] = losses.masked_l1(maps.classifier, target, weight_NCHW)
            weights["calibration"] = options.calibration.weight * ramp(progress, schedule.start_use, schedule.ramp)
        if contrast is not None:
            ratios["contrast"] = contrast
            weights["contrast"] = options.contrast.weight * ramp(progress, schedule.start_contrast, schedule.ramp)
        terms, means = global_means(ratios)
        return {name: weights[name] * term for name, term in terms.items()}, means

    def _pixels(self, maps: Maps, batch: Batch, progress: float) -> Pixels:
        features, (height, width) = cells(maps.features), maps.features.shape[-2:]
        valid = batch.valid.flatten()
        standardiser = self.model.standardiser
        if progress < self.options.schedule.freeze_standardiser or int(standardiser.updates) == 0:
            kept = features * valid[:, None]
            sums = torch.cat([kept.sum(0), (kept**2).sum(0), valid.sum()[None].float()])
            total, square, count = sum_over_ranks(sums).split([features.shape[1], features.shape[1], 1])
            standardiser.update(total, square, count)
        image = torch.arange(len(batch.keys), device=features.device).repeat_interleave(height * width)
        draws = selection.draw(batch.keys, height, width, features.shape[1], features.device)
        return Pixels(standardiser(features), image, valid, batch.allowed[image], draws)

    def _train_f1(self, maps: Maps, batch: Batch, pixels: Pixels, step: int) -> Metrics:
        """Train f1 on the classes of prototype CAM or base seed, and the temperature on confident pixels held out."""
        options, num_images, num_classes = self.options.f1, len(batch.keys), self.model.num_classes
        assert batch.seed is not None
        chosen = maps.prototype.detach() if self.options.f1_labels == "prototype" else batch.seed
        cell = selection.label_cells(chosen, batch.allowed)
        eligible = pixels.valid & (cell.scores > 0)  # an image may have no base seed
        sure = selection.confident(
            cell, pixels.image, eligible, options.confident_share, num_images, num_classes, CONFIDENT_MARGIN
        )
        held_out = sure & (pixels.draws.held_out < self.options.calibration.held_out_share)
        labels = torch.where(sure, cell.labels, -1)
        kept = selection.subset(
            pixels.image, eligible & ~held_out, pixels.draws.subset, options.pixels_per_image, num_images
        )
        seen = sum_over_ranks(torch.bincount(labels[kept & sure], minlength=num_classes))
        self.model.seen_pixels += seen
        metrics = self._step_flow("f1", pixels, kept, labels, options, step / self.total_steps)
        return metrics | self._fit_temperature(pixels, held_out, cell.labels, step)

    def _train_f2(self, batch: Batch, pixels: Pixels, progress: float) -> Metrics:
        """Train f2 on the base seed's classes, as they come."""
        options, num_images, num_classes = self.options.f2, len(batch.keys), self.model.num_classes
        assert batch.seed is not None
        cell = selection.label_cells(batch.seed, batch.allowed)
        seeded = pixels.valid & (cell.scores > 0)
        sure = selection.confident(cell, pixels.image, seeded, options.confident_share, num_images, num_classes)
        labels = torch.where(sure, cell.labels, -1)
        kept = selection.subset(pixels.image, seeded, pixels.draws.subset, options.pixels_per_image, num_images)
        return self._step_flow("f2", pixels, kept, labels, options, progress)

    def _step_flow(
        self, name: str, pixels: Pixels, kept: Tensor, labels: Tensor, options: FlowConfig, progress: float
    ) -> Metrics:
        noisy = pixels.features[kept] + options.noise * pixels.draws.noise[kept]
        log_prob, log_det = self.flows[name](noisy)
        weights = self._pixel_weights(labels[kept], options.balance_classes)
        ratios = {
            f"{name}_nll": losses.flow_nll(log_prob, log_det, labels[kept], pixels.allowed[kept], weights),
            f"{name}_discriminative": losses.discriminative(log_prob, labels[kept], weights),
        }
        terms, means = global_means(ratios)
        loss = terms[f"{name}_nll"] + options.discriminative_weight * terms[f"{name}_discriminative"]
        for group in self.optimizers[name].param_groups:
            group["lr"] = exponential(progress, options)
        dim = self.model.feature_dim
        finish_step(loss / dim, self.optimizers[name], options.clip_norm)
        per_dim = torch.log(torch.tensor(2.0)) * dim
        return {f"{name}_bits_per_dim": means[f"{name}_nll"] / per_dim.to(log_prob.device)}

    def _pixel_weights(self, labels: Tensor, balance: bool) -> Tensor:
        """One a pixel; or the same sum for every class in the global batch, and half as much in all for the unsure."""
        if not balance:
            return torch.ones(len(labels), device=labels.device)
        counts = sum_over_ranks(torch.bincount(labels + 1, minlength=self.model.num_classes + 1)).float()
        share = (counts > 0).float()
        share[0] *= share[1:].sum().clamp_min(1) / 2
        return (share / counts.clamp_min(1))[labels + 1]

    @torch.no_grad()
    def _fit_temperature(self, pixels: Pixels, held_out: Tensor, labels: Tensor, step: int) -> Metrics:
        """Choose the temperature under which held-out pixels are likeliest."""
        model, options = self.model, self.options.calibration
        assert model.f1 is not None
        log_prob, _ = model.f1(pixels.features[held_out])
        log_prob = log_prob.masked_fill(~pixels.allowed[held_out], -torch.inf)
        truth = labels[held_out, None]
        grid = model.temperature_grid
        entropy = torch.stack(
            [-(log_prob / t).log_softmax(1).gather(1, truth).sum() for t in grid]
        )
        right = (log_prob.argmax(1) == truth[:, 0]).sum()
        both = sum_over_ranks(torch.cat([entropy, right[None].float(), entropy.new_tensor([float(len(truth))])]))
        model.temperature_loss += both[: len(grid)]
        if options.fit_temperature and step % options.refit_every == options.refit_every - 1:
            model.temperature.copy_(grid[model.temperature_loss.argmin()])
            model.temperature_loss.zero_()
        return {"posterior_accuracy": both[-2] / both[-1].clamp_min(1), "temperature": model.temperature.clone()}

    @torch.no_grad()
    def _denoise(self, batch: Batch, pixels: Pixels, step: int, use: float) -> tuple[Tensor, Metrics]:
        """BSDNF: the base seed with unlikely pixels depressed, and the share of seed pixels that were, by class too."""
        model, options = self.model, self.options.denoise
        assert batch.seed is not None
        shape = batch.valid.shape
        labels = selection.label_cells(batch.seed, batch.allowed).labels
        log_prob, log_det = model.f2(pixels.features)
        scores = pixel_scores(log_prob, log_det, labels, model.feature_dim, options.score)
        scores_NHW = smooth_scores(scores.view(shape), labels.view(shape))
        seeded = batch.seed.amax(1).flatten() > 0
        foreground = pixels.valid & seeded & (labels > 0)
        nobody = shape[0] * model.num_classes
        groups = torch.where(foreground, pixels.image * model.num_classes + labels, nobody)
        ranks, _ = selection.rank_within(groups, pixels.draws.subset, nobody + 1)
        queued = foreground & (ranks < options.scores_per_image)
        model.thresholds.enqueue(gather_rows(scores_NHW.flatten()[queued]), gather_rows(labels[queued]))
        if step % options.refit_every == options.refit_every - 1:
            model.thresholds.refit()
        if use == 0 or not bool(model.thresholds.ready):
            return batch.seed, {"depressed_share": scores.new_zeros(())}
        refined, depressed = depress(
            batch.seed,
            scores_NHW,
            labels.view(shape),
            batch.valid,
            model.thresholds.thresholds,
            model.thresholds.stds,
            options,
        )
        counts = [torch.bincount(labels[of], minlength=model.num_classes) for of in (depressed.flatten(), foreground)]
        depressed_C, all_C = sum_over_ranks(torch.stack(counts)).float()
        shares = {
            "depressed_share": depressed_C.sum() / all_C.sum().clamp_min(1),
            "depressed_share_of": depressed_C / all_C,  # no number where a class is not in the batch
        }
        return batch.seed + use * (refined - batch.seed), shares

    @torch.no_grad()
    def _fill_banks(self, maps: Maps, batch: Batch, step: int) -> None:
        """Region features of this batch; now and then, features drawn anew from f1."""
        options, model = self.options.contrast, self.model
        winner_NHW = selection.label_cells(maps.prototype, batch.allowed).labels.view(batch.valid.shape)
        one_hot_NCHW = F.one_hot(winner_NHW, model.num_classes).permute(0, 3, 1, 2) * batch.valid[:, None]
        weight_NCP = (maps.prototype * one_hot_NCHW).flatten(2)
        regions_NCD = F.normalize(weight_NCP @ maps.features.float().flatten(2).transpose(1, 2), dim=-1)
        trusted = torch.cat([torch.ones_like(maps.scores[:, :1], dtype=torch.bool), maps.scores > 0], dim=1)
        large = one_hot_NCHW.flatten(2).sum(-1) >= MIN_REGION_CELLS
        rows, classes = torch.nonzero(batch.allowed & trusted & large, as_tuple=True)
        model.region_bank.enqueue(gather_rows(regions_NCD[rows, classes]), gather_rows(classes))
        if options.sampled_size > 0 and step % options.refresh_every == options.refresh_every - 1:
            self._draw_samples(step)

    def _bank_fill(self) -> Metrics:
        """Shares of the banks' slots that are in use."""
        banks = {"region_bank_fill": self.model.region_bank, "sampled_bank_fill": self.model.sampled_bank}
        return {name: bank.filled.sum() / max(bank.features[..., 0].numel(), 1) for name, bank in banks.items()}

    def _draw_samples(self, step: int) -> None:
        """Features that f1 finds likely for their class: "low-bias" positives."""
        options, model = self.options.contrast, self.model
        assert model.f1 is not None
        features = torch.zeros_like(model.sampled_bank.features)
        filled = torch.zeros_like(model.sampled_bank.filled)
        device = features.device
        for index in torch.nonzero(model.seen_pixels >= options.min_pixels)[:, 0].tolist():
            # keyed by class and step, so that a resumed run draws the same
            generator = torch.Generator(device).manual_seed((self.config.random_seed * 1_000_003 + step) * 1009 + index)
            classes = torch.full((4 * options.sampled_size,), index, device=device)
            latent = model.f1.mixture.sample(classes, options.sampling_std, generator)
            standardised = model.f1.flow.inverse(latent)
            log_prob, log_det = model.f1(standardised)
            likely = torch.where(log_prob.argmax(1) == index, log_prob[:, index] + log_det, -torch.inf)
            likely = torch.where(standardised.isfinite().all(1), likely, -torch.inf)
            best = likely.topk(options.sampled_size)
            count = int(best.values.isfinite().sum())
            chosen = F.normalize(model.standardiser.inverse(standardised[best.indices[:count]]), dim=-1)
            features[index, :count], filled[index] = chosen, count
        model.sampled_bank.replace(from_first_rank(features), from_first_rank(filled))

    def _contrast(self, maps: Maps, batch: Batch) -> Ratio | None:
        """InfoNCE of the image prototypes against the banks; None while fewer than two classes are in them."""
        options, model = self.options.contrast, self.model
        regions, region_classes = model.region_bank.rows()
        sampled, sampled_classes = model.sampled_bank.rows()
        if options.sampled_size == 0:
            sampled, sampled_classes = sampled[:0], sampled_classes[:0]
        key_classes = torch.cat([region_classes, sampled_classes])
        if len(torch.unique(key_classes)) < 2:
            return None
        weights = self._positive_weights(region_classes, sampled_classes, options.sampled_share)
        rows, classes = torch.nonzero(
            (maps.prototypes.detach().norm(dim=-1) > 0)[:, 1:] & batch.allowed[:, 1:], as_tuple=True
        )
        anchors = F.normalize(maps.prototypes[rows, classes + 1], dim=-1)
        keys = torch.cat([regions, sampled])
        return losses.info_nce(anchors, classes + 1, keys, key_classes, weights, options.temperature)

    def _positive_weights(self, regions: Tensor, sampled: Tensor, share: float) -> Tensor:
        """Weight of every key as a positive: the sampled of a class have `share` in all, its regions the rest."""
        num_classes = self.model.num_classes
        counts = [torch.bincount(classes, minlength=num_classes).float() for classes in (regions, sampled)]
        return torch.cat([(1 - share) / counts[0][regions], share / counts[1][sampled]])

    def _count_activity(self, calibrated: bool, depressed: Tensor | None, contrast: Ratio | None) -> None:
        """Count the steps in which each of state.MODULES had an effect."""
        device = self.model.active_steps.device
        denoised = depressed > 0 if depressed is not None else torch.tensor(False, device=device)
        flags = [torch.tensor(calibrated, device=device), denoised, torch.tensor(contrast is not None, device=device)]
        self.model.active_steps += torch.stack(flags).long()


def new_step(model: Brnf, config: RunConfig, total_steps: int, wrap: Wrap = unwrapped) -> BaseStep:
    """The step that trains what `new_state` made."""
    if isinstance(model, BrnfState):
        return BrnfStep(model, config, total_steps, wrap)
    return BaseStep(model, config, total_steps, wrap)
