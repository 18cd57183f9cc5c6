"""Convolutions of channels with filters of their own: the loops that define them, and cuts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_scan import fused, numbers

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.kernels.selftest import same_bits as same

Tensor = torch.Tensor
# positions of the input, taps, positions of the result, shift
SIZES = [
    (1, 1, 1, 0), (5, 3, 5, 2), (20, 4, 17, 0), (40, 40, 40, 39), (33, 7, 33, 3), (10, 3, 10, -2), (10, 3, 10, 20),
    (130, 5, 130, 4), (0, 3, 4, 2), (4, 0, 4, 0), (4, 3, 0, 2), (70, 90, 70, 89),
]  # fmt: skip


def terms(n: int, taps: int, length: int, shift: int) -> Iterator[tuple[int, int, int]]:
    """(t, i, position) of all that is multiplied, t ascending, then i."""
    for t in range(length):
        for i in range(taps):
            if 0 <= t + i - shift < n:
                yield t, i, t + i - shift


def loops(u: Tensor, w: Tensor, grad: Tensor, shift: int) -> list[Tensor]:
    sizes = (u.shape[2], w.shape[1], grad.shape[2], shift)
    y, du, dw = torch.zeros(grad.shape), torch.zeros(u.shape), torch.zeros(w.shape)
    for t, i, s in terms(*sizes):
        y[:, :, t] = fused(w[:, i], u[:, :, s], y[:, :, t])
        du[:, :, s] = fused(grad[:, :, t], w[:, i], du[:, :, s])
    for b in range(u.shape[0]):
        for t, i, s in terms(*sizes):
            dw[:, i] = fused(grad[b, :, t], u[b, :, s], dw[:, i])
    return [y + 0.0, du + 0.0, dw + 0.0]


def everything(u: Tensor, w: Tensor, grad: Tensor, shift: int) -> list[Tensor]:
    return [canonical.depthwise(u, w, grad.shape[2], shift), canonical.depthwise_input(grad, w, u.shape[2], shift),
            canonical.depthwise_weight(grad, u, w.shape[1], shift)]  # fmt: skip


@pytest.mark.parametrize(("n", "taps", "length", "shift"), SIZES)
def test_they_are_the_loops(n: int, taps: int, length: int, shift: int) -> None:
    u, w, grad = numbers(2, 3, n, seed=1), numbers(3, taps, seed=2), numbers(2, 3, length, seed=3)
    assert all(map(same, everything(u, w, grad, shift), loops(u, w, grad, shift)))
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (u, grad)]
    assert all(map(same, everything(turned[0], w, turned[1], shift), loops(u, w, grad, shift)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_reaches_what_reads_it_alone(bad: float) -> None:
    u, w, grad = numbers(1, 2, 30, seed=1), numbers(2, 4, seed=2), numbers(1, 2, 30, seed=3)
    clean = everything(u, w, grad, 3)
    u[0, 0, 10] = bad
    dirty = everything(u, w, grad, 3)
    others = [t for t in range(30) if not 10 <= t <= 13]
    assert same(clean[0][:, 0, others], dirty[0][:, 0, others]) and same(clean[0][:, 1], dirty[0][:, 1])
    assert not dirty[0][0, 0, 10:14].isfinite().any() and same(clean[2][1], dirty[2][1])
    w[0, 0] = bad
    assert same(everything(u[..., :3], w, grad[..., :3], 3)[0], loops(u[..., :3], w, grad[..., :3], 3)[0])


@pytest.mark.parametrize(
    ("u", "w", "text"),
    [
        (numbers(2, 3), numbers(3, 2), "u is [2, 3], want 3 dimensions"),
        (numbers(1, 3, 5), numbers(2, 2), "u is [1, 3, 5], w is [2, 2], which don't fit"),
        (numbers(1, 3, 5).double(), numbers(3, 2), "u is torch.float64"),
    ],
)
def test_wrong_operands_are_named(u: Tensor, w: Tensor, text: str) -> None:
    with pytest.raises(OperandError) as caught:
        canonical.depthwise(u, w, 5, 0)
    assert text in str(caught.value)
