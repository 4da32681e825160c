"""Which pixels train the flows."""

from __future__ import annotations

import math

import torch

from brnf.training import selection


def test_rank_within__equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 5, (200,), generator=generator)
    values = torch.randint(0, 20, (200,), generator=generator).float()  # with ties
    ranks, sizes = selection.rank_within(groups, values, 5)
    for i in range(200):
        same = [j for j in range(200) if groups[j] == groups[i]]
        ahead = [j for j in same if values[j] < values[i] or (values[j] == values[i] and j < i)]
        assert (int(ranks[i]), int(sizes[i])) == (len(ahead), len(same))


def test_confident__takes_the_best_share_of_every_class_in_every_image() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 6, 6, generator=generator)
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    cell = selection.label_cells(maps, allowed)
    assert not (cell.labels[:36] == 2).any()
    image = torch.arange(2).repeat_interleave(36)
    eligible = torch.rand(72, generator=generator) < 0.8
    sure = selection.confident(cell, image, eligible, 0.3, 2, 3)
    for n in range(2):
        for c in range(3):
            members = eligible & (image == n) & (cell.labels == c)
            chosen = members & sure
            assert int(chosen.sum()) == math.ceil(0.3 * int(members.sum()) - 1e-6)
            if chosen.any() and (members & ~sure).any():
                assert cell.scores[chosen].min() >= cell.scores[members & ~sure].max()
    assert not (sure & ~eligible).any()


def test_subset__keeps_at_most_so_many_of_an_image() -> None:
    image = torch.arange(3).repeat_interleave(10)
    eligible = torch.ones(30, dtype=torch.bool)
    eligible[:8] = False
    kept = selection.subset(image, eligible, torch.rand(30, generator=torch.Generator().manual_seed(0)), 4, 3)
    assert torch.bincount(image[kept], minlength=3).tolist() == [2, 4, 4]


def test_draw__depends_on_the_key_alone() -> None:
    device = torch.device("cpu")
    both = selection.draw(torch.tensor([7, 9]), 2, 3, 4, device)
    alone = selection.draw(torch.tensor([9]), 2, 3, 4, device)
    assert torch.equal(both.noise[6:], alone.noise) and torch.equal(both.subset[6:], alone.subset)
    assert not torch.equal(both.noise[:6], alone.noise)
    many = selection.draw(torch.arange(50), 8, 8, 4, device)
    assert abs(float(many.subset.mean()) - 0.5) < 0.02 and float(many.subset.min()) >= 0 > float(many.subset.max()) - 1
