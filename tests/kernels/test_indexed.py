"""Sums at indices against their definition, in every bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.errors import OperandError
from vtrain.kernels import canonical

Tensor = torch.Tensor


def check(values: Tensor, index: Tensor, rows: int, x: Tensor | None = None, alpha: float = 1.0) -> None:
    got = canonical.scatter(values, index, rows, x, alpha)
    assert_same(got, naive.scatter(array(values), index.numpy(), rows, array(x), alpha))


def some(terms: int, rows: int, seed: int) -> Tensor:
    return torch.randint(0, rows, (terms,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 65])
@pytest.mark.parametrize(("terms", "rows"), [(1, 1), (7, 3), (300, 5), (5, 300), (257, 1), (64, 64)])
def test_sizes(terms: int, rows: int, width: int) -> None:
    values, index, x = numbers(terms, width, seed=1), some(terms, rows, 2), numbers(rows, width, seed=3)
    for base in (None, x):
        for alpha in (1.0, -0.1, 0.0):
            check(values, index, rows, base, alpha)


def test_all_to_one_row_and_each_to_its_own() -> None:
    values, x = numbers(500, 7, seed=4), numbers(500, 7, seed=5)
    for index in (torch.zeros(500).long(), torch.arange(500), torch.arange(500).flip(0), torch.arange(500) // 2 * 2):
        check(values, index, 500, x)
        check(values, index, 500)


def test_the_order_is_that_of_the_positions() -> None:
    """1 + 2^60 - 2^60 is 0 in float64; any other order of the three gives 1."""
    values = torch.tensor([[1.0], [2.0**60], [-(2.0**60)]])
    zeros = torch.zeros(3).long()
    assert canonical.scatter(values, zeros, 1).item() == 0.0
    assert canonical.scatter(values.flip(0), zeros, 1).item() == 1.0
    assert canonical.scatter(values[1:], zeros[1:], 1, torch.ones(1, 1)).item() == 0.0  # what was there comes first


def test_the_whole_range_of_numbers() -> None:
    values, x = strange(400, 33, seed=6), strange(9, 33, seed=7)
    for alpha in (1.0, -3.0, 1e-40, 3e38):
        check(values, some(400, 9, 8), 9, x, alpha)


def test_signs_of_zero() -> None:
    """Sums begin with +0, or with what was there."""
    minus = torch.full((2, 1), -0.0)
    check(minus, torch.tensor([0, 2]), 3)
    check(minus, torch.tensor([0, 2]), 3, torch.full((3, 1), -0.0))


def test_layouts() -> None:
    index = some(40, 6, 9)
    for values in (numbers(33, 40, seed=10).T, numbers(80, 33, seed=11)[::2], numbers(1, 33, seed=12).expand(40, 33)):
        check(values, index, 6, numbers(33, 6, seed=13).T)
        check(values, torch.stack([index, index], 1)[:, 0], 6)


def test_nothing_to_add() -> None:
    x = numbers(3, 5, seed=14)
    none = torch.zeros(0).long()
    check(torch.empty(0, 5), none, 3)
    check(torch.empty(0, 5), none, 3, x)
    check(torch.empty(4, 0), torch.zeros(4).long(), 3)
    check(torch.empty(0, 5), none, 0)


@pytest.mark.parametrize("wrong", [-1, 3, 2**40, -(2**62)])
def test_an_index_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(OperandError, match=r"kernel scatter: index from .* want 0 to 2"):
        canonical.scatter(numbers(4, 5), torch.tensor([0, 1, wrong, 2]), 3)
