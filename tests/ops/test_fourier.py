"""Transforms as Monarch products against float64's, and convolutions by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_operators import near, numbers, stepped, wanting

from vtrain import ops
from vtrain.errors import OperandError

Tensor = torch.Tensor
ORDERS = [(1, 1), (4, 4), (3, 8), (8, 3), (1, 7), (16, 16)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_transform_and_its_gradients(order: tuple[int, int]) -> None:
    n = order[0] * order[1]
    re, im = wanting(numbers(2, 3, n, seed=1), numbers(2, 3, n, seed=2))
    wide = [t.detach().double().requires_grad_() for t in (re, im)]
    found, exact = ops.monarch_dft(re, im, order), torch.fft.fft(torch.complex(*wide))
    grads = [numbers(2, 3, n, seed=i) for i in (3, 4)]
    wanted = [exact.real, exact.imag]
    assert all(near(a, b, 2e-6) for a, b in zip(found, wanted, strict=True))
    mine = torch.autograd.grad(found, (re, im), grads)
    theirs = torch.autograd.grad(wanted, wide, [g.double() for g in grads])
    assert all(near(a, b, 2e-6) for a, b in zip(mine, theirs, strict=True))
    real, _ = ops.monarch_dft(re.detach(), None, order)
    assert near(real, torch.fft.fft(re.detach().double()).real, 2e-6)


def test_a_convolution_is_the_direct_one_but_for_rounding() -> None:
    u, w = wanting(numbers(2, 3, 50, seed=1), numbers(3, 50, seed=2))
    grad = numbers(2, 3, 50, seed=3)
    y, direct = ops.monarch_conv(u, w, (10, 10)), ops.long_conv(u, w)
    assert near(y, direct.double(), 2e-6)
    mine, theirs = torch.autograd.grad(y, (u, w), grad), torch.autograd.grad(direct, (u, w), grad)
    assert all(near(a, b.double(), 2e-6) for a, b in zip(mine, theirs, strict=True))


def test_inside_steps_it_has_the_bits_of_outside_and_logs_nothing() -> None:
    u, w = numbers(1, 2, 9, seed=1), numbers(2, 9, seed=2)
    outside = ops.monarch_conv(u, w, (4, 5))
    for policy in ({}, {"matmul": "integer"}):
        found, sites = stepped(lambda: [ops.monarch_conv(u, w, (4, 5))], **policy)
        assert torch.equal(found[0], outside) and all("canonical" in s for s in sites)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.monarch_dft(numbers(2, 8), None, (3, 3)), "want float32 (..., 3 * 3)"),
        (lambda: ops.monarch_conv(numbers(1, 2, 9), numbers(2, 9), (4, 4)), "take 17 points of 16"),
        (lambda: ops.monarch_conv(numbers(1, 2, 9), numbers(3, 9), (8, 4)), "want (batch, channels, length)"),
    ],
)
def test_wrong_operands_are_named(call: Callable[[], Tensor], text: str) -> None:
    with pytest.raises(OperandError) as caught:
        call()
    assert text in str(caught.value)
