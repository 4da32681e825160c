"""FSCL: image prototypes are pulled towards features that are typical of their class over the whole data set.

Region features come from the batches themselves; sampled ones from the flow f1, which finds them likely ("low-bias"
positives; Qiu et al. 2025, abstract and overview figure; rules and sizes are fields of ContrastConfig).

N images, C classes with background at 0, D features, H W cells, P = H*W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brnf import losses
from brnf.config import ContrastConfig
from brnf.losses import Ratio
from brnf.training import selection
from brnf.training.batch import Batch, Maps
from brnf.training.collectives import from_first_rank, gather_rows
from brnf.training.state import BrnfState

MIN_REGION_CELLS = 8
DRAWS_A_SLOT = 4
"""Features drawn for each one that is kept for its density."""


class Contrast:
    """Fills the memory bank and contrasts prototypes with it. Its state is the model's.

    Args:
        model: Whose banks and flow f1 are used.
        options: Sizes, weights, intervals.
        random_seed: Of the run; draws from f1 are keyed by it, the step and the class.
    """

    def __init__(self, model: BrnfState, options: ContrastConfig, random_seed: int) -> None:
        self.model, self.options, self.random_seed = model, options, random_seed

    @torch.no_grad()
    def fill(self, maps: Maps, batch: Batch, step: int) -> None:
        """Region features of this batch; now and then, features drawn anew from f1."""
        options, model = self.options, self.model
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

    def measures(self) -> dict[str, Tensor]:
        """Shares of the banks' slots that are in use."""
        banks = {"region_bank_fill": self.model.region_bank, "sampled_bank_fill": self.model.sampled_bank}
        return {name: bank.filled.sum() / max(bank.features[..., 0].numel(), 1) for name, bank in banks.items()}

    def _draw_samples(self, step: int) -> None:
        """Features that f1 finds likely for their class: "low-bias" positives."""
        options, model = self.options, self.model
        assert model.f1 is not None
        features = torch.zeros_like(model.sampled_bank.features)
        filled = torch.zeros_like(model.sampled_bank.filled)
        device = features.device
        draws = options.sampled_size * (DRAWS_A_SLOT if options.select == "density" else 1)
        for index in torch.nonzero(model.seen_pixels >= options.min_pixels)[:, 0].tolist():
            # keyed by class and step, so that a resumed run draws the same
            generator = torch.Generator(device).manual_seed((self.random_seed * 1_000_003 + step) * 1009 + index)
            latent = model.f1.mixture.sample(
                torch.full((draws,), index, device=device), options.sampling_std, generator
            )
            standardised = model.f1.flow.inverse(latent)
            usable = self._likelihood(standardised, index) if options.select == "density" else latent.new_zeros(draws)
            best = torch.where(standardised.isfinite().all(1), usable, -torch.inf).topk(options.sampled_size)
            count = int(best.values.isfinite().sum())
            chosen = F.normalize(model.standardiser.inverse(standardised[best.indices[:count]]), dim=-1)
            features[index, :count], filled[index] = chosen, count
        model.sampled_bank.replace(from_first_rank(features), from_first_rank(filled))

    def _likelihood(self, standardised: Tensor, index: int) -> Tensor:
        """Log-density of drawn features (P, D) under their class; -inf where another class is likelier."""
        assert self.model.f1 is not None
        log_prob, log_det = self.model.f1(standardised)
        return torch.where(log_prob.argmax(1) == index, log_prob[:, index] + log_det, -torch.inf)

    def loss(self, maps: Maps, batch: Batch) -> Ratio | None:
        """InfoNCE of the image prototypes against the banks; None while fewer than two classes are in them."""
        options, model = self.options, self.model
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
