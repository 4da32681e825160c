"""Memory bank against deques, and its order and state."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from brnf.models.memory_bank import MemoryBank, rank_in_group


def draw(count: int, random_seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(random_seed)
    return torch.randn(count, 2, generator=generator), torch.randint(3, (count,), generator=generator)


def contents(bank: MemoryBank) -> list[set[tuple[float, ...]]]:
    features, classes = bank.rows()
    return [{tuple(row.tolist()) for row in features[classes == c]} for c in range(len(bank.filled))]


def test_rank_in_group() -> None:
    ranks, counts = rank_in_group(torch.tensor([2, 0, 2, 2, 0, 3]), 5)
    assert ranks.tolist() == [0, 0, 1, 2, 1, 0]
    assert counts.tolist() == [2, 0, 3, 1, 0]


@pytest.mark.parametrize("batches", [[1, 2, 3], [5, 0, 7, 2], [40], [3, 40, 4]])
def test_enqueue__keeps_the_newest_of_each_class(batches: list[int]) -> None:
    bank, oracle = MemoryBank(3, 4, 2), [deque(maxlen=4) for _ in range(3)]
    for random_seed, count in enumerate(batches):
        features, classes = draw(count, random_seed)
        bank.enqueue(features, classes)
        for row, c in zip(features, classes, strict=True):
            oracle[c].append(tuple(row.tolist()))
    assert contents(bank) == [set(queue) for queue in oracle]
    assert bank.filled.tolist() == [len(queue) for queue in oracle]


def test_enqueue__is_the_same_however_rows_are_batched() -> None:
    features, classes = draw(50, 0)
    at_once, row_by_row = MemoryBank(3, 4, 2), MemoryBank(3, 4, 2)
    at_once.enqueue(features, classes)
    for row in range(50):
        row_by_row.enqueue(features[row : row + 1], classes[row : row + 1])
    for name, buffer in at_once.state_dict().items():
        assert torch.equal(buffer, row_by_row.state_dict()[name]), name


def test_enqueue__takes_no_gradient() -> None:
    bank = MemoryBank(3, 4, 2)
    features, classes = draw(5, 0)
    bank.enqueue(features.requires_grad_(), classes)
    assert not bank.features.requires_grad and not bank.rows()[0].requires_grad


def test_rows__are_copies() -> None:
    bank = MemoryBank(3, 4, 2)
    bank.enqueue(*draw(12, 0))
    before = bank.rows()[0].clone()
    held = bank.rows()[0]
    bank.enqueue(*draw(12, 1))
    assert torch.equal(held, before)


def test_replace__then_enqueue_goes_on_after_the_filled() -> None:
    bank = MemoryBank(2, 3, 2)
    features = torch.arange(12.0).reshape(2, 3, 2)
    bank.replace(features, torch.tensor([2, 3]))
    rows, classes = bank.rows()
    assert torch.equal(rows, features.flatten(0, 1)[[0, 1, 3, 4, 5]]) and classes.tolist() == [0, 0, 1, 1, 1]
    bank.enqueue(torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]), torch.tensor([0, 1]))
    assert bank.features[0].tolist() == [[0, 1], [2, 3], [-1, -1]]
    assert bank.features[1].tolist() == [[-2, -2], [8, 9], [10, 11]]


def test_size_zero__stays_empty() -> None:
    bank = MemoryBank(3, 0, 2)
    bank.enqueue(*draw(5, 0))
    bank.replace(torch.zeros(3, 0, 2), torch.zeros(3, dtype=torch.long))
    assert bank.rows()[0].shape == (0, 2) and not bank.filled.any()


def test_state_dict__round_trip_goes_on_alike() -> None:
    bank, restored = MemoryBank(3, 4, 2), MemoryBank(3, 4, 2)
    bank.enqueue(*draw(7, 0))
    restored.load_state_dict(bank.state_dict())
    for copy in (bank, restored):
        copy.enqueue(*draw(9, 1))
    assert all(torch.equal(buffer, restored.state_dict()[name]) for name, buffer in bank.state_dict().items())
