"""Running sums against their definition, in every bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.kernels import canonical


@pytest.mark.parametrize("shape", [(1,), (40,), (3, 5), (7, 33), (2, 40, 3), (2, 3, 65), (4, 1, 5), (1, 1)], ids=str)
def test_running_sums(shape: tuple[int, ...]) -> None:
    for dim in range(-len(shape), len(shape)):
        for x in (numbers(*shape, seed=15), strange(*shape, seed=16), numbers(*shape[::-1], seed=17).permute(
            *reversed(range(len(shape)))
        )):  # fmt: skip
            assert_same(canonical.running_sum(x, dim), naive.running_sum(array(x), dim), f"{dim} {x.stride()}")


def test_running_sums_of_a_contiguous_column_with_a_stride_of_its_own() -> None:
    """A dimension of size one may have any stride, also of a tensor that counts as contiguous."""
    x = numbers(3, 7, seed=18).T[:5, :1]
    assert x.is_contiguous() and x.stride() == (1, 7)
    assert_same(canonical.running_sum(x, 1), array(x.double()))


def test_running_sums_of_a_number_and_of_nothing() -> None:
    assert canonical.running_sum(torch.tensor(3.0), 0).item() == 3.0
    assert canonical.running_sum(torch.empty(2, 0, 3), 1).shape == (2, 0, 3)
    first = canonical.running_sum(torch.tensor([-0.0, -0.0]), 0)
    assert_same(first, naive.running_sum(array(torch.tensor([-0.0, -0.0])), 0))
