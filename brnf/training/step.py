"""One training step of the base (SIPE) and of BRNF, as plain torch in one process.

Ray Train, DDP and precision wrap it from outside through `Wrap`. Three optimizers, three backward passes: the
flows see detached features, the network sees the flows' outputs as constants (Qiu et al. 2025, overview figure).

N images, C classes with background at 0, D features, H W cells, P = N*H*W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brnf import losses
from brnf.config import BrnfConfig, FlowConfig, OptimConfig, RunConfig
from brnf.denoise import depress, pixel_scores, smooth_scores
from brnf.losses import Ratio
from brnf.models.brnf import Brnf, cells
from brnf.training import selection
from brnf.training.batch import Batch, Maps, read_maps
from brnf.training.collectives import gather_rows, global_means, sum_over_ranks
from brnf.training.contrast import Contrast
from brnf.training.health import gradient_shares
from brnf.training.schedule import exponential, ramp, set_network_rates
from brnf.training.state import BrnfState

Wrap = Callable[[nn.Module], nn.Module]
Metrics = dict[str, Tensor]

CONFIDENT_MARGIN = 0.05


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
            "this part (base.optim, brnf.optim, irn.optim, or brnf.f1.lr and brnf.f2.lr) or flow.clamp"
        )
    optimizer.step()
    return norm


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

    @torch.no_grad()
    def panels(self, batch: Batch) -> Metrics:
        """Class maps to look at: classifier CAM, prototype CAM and, where there is one, base seed."""
        maps = read_maps(self.model.network, batch, self.config)
        seen = {"classifier CAM": maps.classifier, "prototype CAM": maps.prototype}
        return seen if batch.seed is None else seen | {"base seed": batch.seed}

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
        self.contrast = Contrast(model, config.brnf.contrast, config.random_seed)
        self.optimizers["f1"] = flow_optimizer(model.f1, config.brnf.f1)
        self.optimizers["f2"] = flow_optimizer(model.f2, config.brnf.f2)

    def optim_config(self) -> OptimConfig:
        return self.config.brnf.optim

    def __call__(self, batch: Batch, step: int) -> Metrics:
        assert batch.seed is not None
        options, schedule, progress = self.options, self.options.schedule, step / self.total_steps
        if not options.train_network:
            return self._train_f1_alone(batch, step)
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
                self.contrast.fill(maps, batch, step)
                measured |= self.contrast.measures()
        if use > 0 and options.calibration.weight > 0:
            target = self.model.posterior(maps.features, batch.allowed)
        if ramp(progress, schedule.start_contrast, 0.0) > 0 and options.contrast.weight > 0:
            contrast = self.contrast.loss(maps, batch)
        terms, means = self._network_losses(maps, batch, guide, target, contrast, progress)
        if (step + 1) % self.config.compute.log_every == 0:
            measured |= gradient_shares(terms, (maps.features, maps.cam))
        self._count_activity(target is not None, measured.get("depressed_share"), contrast)
        return measured | means | {"gradient_norm": self.update_network(torch.stack([*terms.values()]).sum(), progress)}

    @torch.no_grad()
    def _train_f1_alone(self, batch: Batch, step: int) -> Metrics:
        """Train f1 on the network's features as they are."""
        maps = read_maps(self.network, batch, self.config)
        pixels = self._pixels(maps, batch, step / self.total_steps)
        with torch.enable_grad():
            return self._train_f1(maps, batch, pixels, step)

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
        temperature = self.model.temperature if options.discriminative_tempered else 1.0
        candidates = pixels.allowed[kept] if options.unsure == "tags" else torch.ones_like(pixels.allowed[kept])
        ratios = {
            f"{name}_nll": losses.flow_nll(log_prob, log_det, labels[kept], candidates, weights),
            f"{name}_discriminative": losses.discriminative(log_prob / temperature, labels[kept], weights),
        }
        terms, means = global_means(ratios)
        loss = terms[f"{name}_nll"] + options.discriminative_weight * temperature * terms[f"{name}_discriminative"]
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
        seeded = batch.seed.amax(1).flatten() > 0
        foreground = pixels.valid & seeded & (labels > 0)
        log_prob, log_det = model.f2(pixels.features[foreground])
        scores = torch.zeros_like(pixels.features[:, 0])
        scores[foreground] = pixel_scores(log_prob, log_det, labels[foreground], model.feature_dim, options.score)
        scores_NHW = smooth_scores(scores.view(shape), torch.where(foreground, labels, -1).view(shape))
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
