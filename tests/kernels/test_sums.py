"""Canonical sums against their definition, in every bit and every layout."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.kernels import canonical

Tensor = torch.Tensor
LENGTHS = [0, 1, 2, 31, 32, 33, 63, 64, 65, 97, 16383, 16384, 16385, 32768, 40000]
AREAS = [1, 2, 4, 16, 25, 32, 49, 64, 196]


def check(kind: str, dims: list[int], x: Tensor, *others: Tensor) -> None:
    got = canonical.sum_terms(kind, dims, x, *others)
    assert got.is_contiguous()
    want = naive.sum_terms(kind, dims, array(x), *(array(t) for t in others))
    assert_same(got, want, f"{kind} {dims} {list(x.shape)} {x.stride()}")


def check_kinds(dims: list[int], x: Tensor, seed: int = 100) -> None:
    """Every kind of term over these dimensions of x, and of a second operand laid out like it and otherwise."""
    kept = [x.shape[d] for d in range(x.dim()) if d not in dims]
    terms = math.prod(x.shape[d] for d in dims)
    mean = numbers(*kept, seed=seed, spread=1)
    alike = numbers(*x.shape, seed=seed + 1)
    alike = torch.empty_strided(x.shape, x.stride()).copy_(alike) if 0 not in x.stride() else x.clone()
    check("value", dims, x)
    check("value", dims, x.double() * math.pi)
    check("square", dims, x)
    check("centred_square", dims, x, mean)
    for b in (alike, alike.contiguous()):
        check("product", dims, x, b)
        check("centred_product", dims, x, b, mean)
        check("normalised", dims, x, b, numbers(terms, seed=seed + 2), numbers(terms, seed=seed + 3))


def subsets(n: int) -> list[list[int]]:
    return [list(s) for k in range(n + 1) for s in itertools.combinations(range(n), k)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 3, 9, 33])
def test_lengths(length: int, rows: int) -> None:
    """Along a contiguous dimension, and across: the kept dimension next to each other in memory."""
    if rows * length > 200_000:
        rows = 8  # the fewest that are added side by side
    x = numbers(rows, length, seed=1)
    check("value", [1], x)
    check("square", [1], x)
    check("value", [0], numbers(length, rows, seed=2))
    check("centred_square", [0], numbers(length, rows, seed=3), numbers(rows, seed=4))
    check("value", [0], numbers(length, 2 * rows, seed=5)[:, ::2])
    check("value", [1], numbers(rows, 2 * length, seed=6)[:, ::2])


def test_of_nothing_and_of_one_number() -> None:
    check("value", [], torch.tensor(-0.0))
    check("value", [0], torch.tensor([-0.0]))
    check("value", [], numbers(3, 4))
    check("value", [0], torch.empty(0, 5))
    check("value", [0, 1], torch.empty(0, 5))
    check("value", [1], torch.empty(0, 5))
    assert not canonical.sum_terms("value", [0], torch.tensor([-0.0, -0.0])).signbit()  # lanes begin with +0


EMPTY = """
import torch
from vtrain.kernels import canonical
for dims, x in (([1, 2], torch.empty(3, 4, 0)), ([0, 2], torch.empty(2, 3, 0)), ([0, 1], torch.empty(0, 4, 3).mT)):
    y = canonical.sum_terms("value", dims, x)
    assert y.numel() == 3 or y.numel() == 4, y.shape
    assert not y.count_nonzero() and not y.signbit().any(), y
"""


def test_of_nothing_in_two_dimensions() -> None:
    """In a process of its own: a division by a size of zero would end it."""
    done = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("dims", subsets(3), ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 32, 9), (9, 2, 33), (1, 40, 1), (2, 1, 35)], ids=str)
def test_dimensions_of_three(shape: tuple[int, ...], dims: list[int]) -> None:
    for order in itertools.permutations(range(3)):
        back = [order.index(d) for d in range(3)]
        check_kinds(dims, numbers(*(shape[d] for d in order), seed=7).permute(back))


@pytest.mark.parametrize("dims", subsets(4), ids=str)
def test_dimensions_of_four(dims: list[int]) -> None:
    x = numbers(3, 10, 2, 17, seed=8)
    for view in (x, x.permute(1, 3, 0, 2), x.permute(3, 2, 1, 0), x.permute(0, 2, 3, 1), x[:, ::2, :, 1::3]):
        check_kinds(dims, view)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("channels", [1, 3, 8, 37])
def test_by_channel(channels: int, area: int) -> None:
    """Batch norm's sums, over samples and positions."""
    x = numbers(5, channels, area, seed=9)
    check_kinds([0, 2], x)
    check("value", [0, 2], x.transpose(0, 1).contiguous().transpose(0, 1))
    check("value", [1], x)


@pytest.mark.parametrize("dims", subsets(3), ids=str)
def test_expanded_and_overlapping(dims: list[int]) -> None:
    flat = numbers(400, seed=10)
    for x in (
        flat[:35].view(5, 1, 7).expand(5, 9, 7), flat[:9].view(1, 9, 1).expand(5, 9, 7), flat[:1].expand(5, 9, 7),
        flat.as_strided((5, 9, 7), (3, 2, 1)), flat.as_strided((5, 9, 7), (1, 1, 2)),
    ):  # fmt: skip
        check_kinds(dims, x)


@pytest.mark.parametrize("dims", subsets(2), ids=str)
def test_the_whole_range_of_numbers(dims: list[int]) -> None:
    for x in (strange(9, 70, seed=11), strange(70, 9, seed=12), strange(33, 40, seed=13).mT):
        check_kinds(dims, x)
        check("value", dims, x.double() * 2.0**900)


def test_order_matters_here() -> None:
    """The inputs are hard enough: plain ascending and pairwise sums give other bits."""
    x = numbers(1, 16385, seed=14)
    got = float(canonical.sum_terms("value", [1], x))
    assert got != sum(x[0].double().tolist(), 0.0) and got != float(x.double().sum())
