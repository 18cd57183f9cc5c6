"""Softmax and the norms of rows against their sequences of float32 operations, in every bit."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, numbers, strange

from vtrain.kernels import canonical

Tensor = torch.Tensor
WIDTHS = [1, 2, 31, 32, 33, 64, 97, 1000]
EPS = [1e-5, 0.0, 1e-12]


def rows_of(n: int) -> list[Tensor]:
    """Rows of n numbers: ordinary, hard, equal, zero, with infinities, NaN and the ends of the range."""
    edge = torch.tensor([88.7, 88.8, -87.3, -103.9, -104.0, 0.0, -0.0, 1e-45, 3.4028235e38, -3.4028235e38])
    return [
        numbers(5, n, seed=1, spread=2), numbers(3, n, seed=2), strange(9, n, seed=3), torch.full((2, n), 0.1),
        torch.zeros(1, n), torch.full((1, n), -math.inf), edge.repeat(1 + 2 * n // 10)[: 2 * n].view(2, n),
        torch.where(torch.arange(n) == n - 1, torch.tensor(math.inf), numbers(2, n, seed=4)),
        torch.where(torch.arange(n) == n // 2, torch.tensor(math.nan), numbers(2, n, seed=5)),
    ]  # fmt: skip


# ---- softmax --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", WIDTHS)
def test_softmax(n: int) -> None:
    for x in rows_of(n):
        assert_same(canonical.softmax("softmax", 1, x), naive.softmax(array(x)))
        assert_same(canonical.softmax("log_softmax", 1, x), naive.log_softmax(array(x)))


@pytest.mark.parametrize("n", WIDTHS)
def test_softmax_backward(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        grad = numbers(*x.shape, seed=10 + q)
        for name, twin in (
            ("softmax", naive.softmax_backward),
            ("log_softmax", naive.log_softmax_backward),
        ):
            for y in (canonical.softmax(name, 1, x), x):
                got = canonical.softmax(name, 1, y=y, grad=grad)
                assert_same(got, twin(array(y), array(grad)), name)


def test_softmax_along_any_dimension_of_any_layout() -> None:
    x = numbers(4, 5, 33, seed=6, spread=2)
    for view in (x, x.permute(2, 0, 1), x.mT, x[:, ::2], x[:, :1].expand(4, 6, 33)):
        for dim in (-1, 0, 1, 2):
            last = view.movedim(dim, -1)
            want = naive.softmax(array(last.reshape(-1, last.shape[-1]))).reshape(last.shape)
            got = canonical.softmax("softmax", dim, view)
            assert got.is_contiguous()
            assert_same(got.movedim(dim, -1), want)
            grad = numbers(*view.shape[::-1], seed=7).permute(2, 1, 0)
            flat = grad.movedim(dim, -1).reshape(-1, last.shape[-1])
            back = naive.softmax_backward(want.reshape(flat.shape), array(flat)).reshape(last.shape)
            assert_same(canonical.softmax("softmax", dim, y=got, grad=grad).movedim(dim, -1), back)
    assert canonical.softmax("softmax", 0, torch.tensor(3.0)).item() == 1.0
    assert canonical.softmax("softmax", 1, torch.empty(2, 0)).shape == (2, 0)
    assert canonical.softmax("softmax", 1, torch.empty(0, 3)).shape == (0, 3)


def test_long_rows() -> None:
    """More than one segment of the sum, more than one piece for the threads."""
    x = numbers(2, 16385, seed=8, spread=1)
    assert_same(canonical.softmax("softmax", 1, x), naive.softmax(array(x)))
    want = naive.layer_norm(array(x), None, None, 1e-5)
    for got, twin in zip(canonical.layer_norm(x, 16385, None, None, 1e-5), want, strict=True):
        assert_same(got, twin)


# ---- norms of rows --------------------------------------------------------------------------------------------------
def affine(n: int) -> list[tuple[Tensor | None, Tensor | None]]:
    weight, bias = numbers(n, seed=20, spread=1), numbers(2 * n, seed=21, spread=1)[::2]
    return [(None, None), (weight, None), (weight, bias), (None, bias), (strange(n, seed=22), strange(n, seed=23))]


@pytest.mark.parametrize("n", WIDTHS)
def test_layer_norm(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        for weight, bias in affine(n):
            eps = EPS[q % 3]
            got = canonical.layer_norm(x, n, weight, bias, eps)
            want = naive.layer_norm(array(x), array(weight), array(bias), eps)
            for what, a, b in zip(("y", "mean", "rstd"), got, want, strict=True):
                assert_same(a, b, what)
            grad = numbers(*x.shape, seed=24 + q)
            back = canonical.layer_norm_backward(x, n, grad, got[1], got[2], weight)
            assert_same(back, naive.layer_norm_backward(array(x), array(grad), want[1], want[2], array(weight)))


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm(n: int) -> None:
    for q, x in enumerate(rows_of(n)):
        for weight, _ in affine(n):
            eps = EPS[q % 3]
            got, want = canonical.rms_norm(x, n, weight, eps), naive.rms_norm(array(x), array(weight), eps)
            for what, a, b in zip(("y", "rstd"), got, want, strict=True):
                assert_same(a, b, what)
            grad = numbers(*x.shape, seed=25 + q)
            back = canonical.rms_norm_backward(x, n, grad, got[1], weight)
            assert_same(back, naive.rms_norm_backward(array(x), array(grad), want[1], array(weight)))


def test_norms_of_any_layout() -> None:
    x, weight = numbers(33, 6, seed=26).T, numbers(4, 33, seed=27)[0]
    flat = x.contiguous()
    for got, want in zip(canonical.layer_norm(x, 33, weight, None, 1e-5),
                         canonical.layer_norm(flat, 33, weight, None, 1e-5), strict=True):  # fmt: skip
        assert_same(got, array(want))
    deep = numbers(2, 3, 4, 5, seed=28)
    got = canonical.rms_norm(deep, 20, None, 1e-5)
    want = naive.rms_norm(array(deep.view(6, 20)), None, 1e-5)
    assert_same(got[0].view(6, 20), want[0])
    assert_same(got[1], want[1])
    assert canonical.layer_norm(torch.empty(0, 4), 4, None, None, 1e-5)[1].shape == (0,)
