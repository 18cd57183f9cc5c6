"""The three products of a convolution against loops over their terms, in every bit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import Geometry, array, assert_same, numbers, strange

from vtrain.kernels import canonical

Tensor = torch.Tensor
WIDE = pytest.mark.parametrize("wide", [False, True], ids=["float", "double"])
# x, weight, stride, padding, dilation, groups
CASES = {
    "one number": ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1 x 1": ((3, 5, 4, 7), (6, 5, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "3 x 3": ((2, 3, 7, 5), (5, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "whole panels": ((1, 2, 8, 8), (12, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strides": ((2, 2, 9, 8), (3, 2, 3, 2), (2, 3), (1, 0), (1, 1), 1),
    "stride beyond the kernel": ((2, 2, 10, 11), (3, 2, 2, 1), (4, 3), (0, 0), (1, 1), 1),
    "dilation": ((2, 2, 9, 10), (3, 2, 3, 2), (1, 1), (2, 1), (2, 3), 1),
    "stride and dilation": ((1, 3, 11, 9), (2, 3, 2, 3), (2, 3), (3, 2), (3, 2), 1),
    "groups": ((2, 6, 5, 4), (9, 2, 3, 3), (1, 2), (1, 1), (1, 1), 3),
    "depthwise": ((2, 5, 6, 6), (10, 1, 3, 3), (2, 2), (1, 1), (1, 1), 5),
    "padding beyond the input": ((1, 2, 2, 3), (2, 2, 3, 3), (1, 1), (4, 5), (1, 1), 1),
    "kernel of the input's size": ((3, 4, 5, 3), (7, 4, 5, 3), (1, 1), (0, 0), (1, 1), 1),
    "tall": ((1, 1, 37, 1), (2, 1, 5, 1), (1, 1), (2, 0), (1, 1), 1),
    "wide": ((1, 2, 1, 71), (1, 2, 1, 7), (1, 1), (0, 3), (1, 1), 1),
    "rows that are not read": ((1, 1, 8, 8), (1, 1, 2, 2), (3, 3), (0, 0), (1, 1), 1),
    "257 terms of a weight": ((1, 1, 19, 15), (2, 1, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    "over 256 terms of an output": ((1, 29, 4, 3), (3, 29, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "over 256 terms of an input": ((1, 2, 4, 3), (33, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1),
}
Operands = tuple[Tensor, Tensor, Tensor, Geometry]


def operands(name: str, make: Callable[..., Tensor] = numbers) -> Operands:
    """x, weight, the gradient of the output, the geometry."""
    x, weight, stride, padding, dilation, groups = CASES[name]
    g = Geometry.of(x, weight, stride, padding, dilation, groups)
    return make(*x, seed=1), make(*weight, seed=2), make(g.n, g.o, g.oh, g.ow, seed=3), g


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, wide: bool) -> Tensor:
    y = torch.full((g.n, g.o, g.oh, g.ow), math.nan)
    return canonical.convolution("convolution", x, weight, y, bias, g, wide)


def input_gradient(weight: Tensor, grad: Tensor, g: Geometry, wide: bool) -> Tensor:
    y = torch.full((g.n, g.c, g.h, g.w), math.nan)
    return canonical.convolution("input_gradient", y, weight, grad, None, g, wide)


def weight_gradient(x: Tensor, grad: Tensor, g: Geometry, wide: bool) -> Tensor:
    y = torch.full((g.o, g.c // g.groups, g.kh, g.kw), math.nan)
    return canonical.convolution("weight_gradient", x, y, grad, None, g, wide)


def check(x: Tensor, weight: Tensor, grad: Tensor, g: Geometry, wide: bool) -> None:
    bias = numbers(g.o, seed=4)
    a, b, c = array(x), array(weight), array(grad)
    assert_same(forward(x, weight, None, g, wide), naive.convolution(a, b, None, g, wide), "forward")
    assert_same(forward(x, weight, bias, g, wide), naive.convolution(a, b, array(bias), g, wide), "with bias")
    assert_same(input_gradient(weight, grad, g, wide), naive.input_gradient(b, c, g, wide), "input gradient")
    assert_same(weight_gradient(x, grad, g, wide), naive.weight_gradient(a, c, g, wide), "weight gradient")


@WIDE
@pytest.mark.parametrize("name", CASES)
def test_geometries(name: str, wide: bool) -> None:
    check(*operands(name), wide)


@WIDE
@pytest.mark.parametrize("name", ["3 x 3", "stride and dilation", "depthwise", "wide"])
def test_the_whole_range_of_numbers(name: str, wide: bool) -> None:
    check(*operands(name, strange), wide)


@pytest.mark.parametrize("name", CASES)
def test_the_twin_is_a_convolution(name: str) -> None:
    """Against torch in float64, on small whole numbers, whose sums are exact in any order."""
    x, weight, grad, g = operands(name, lambda *shape, seed: numbers(*shape, seed=seed).mul(2).clamp(-8, 8).round())
    stride, padding, dilation = g[7:9], g[9:11], g[11:13]
    wide = [t.double().requires_grad_() for t in (x, weight)]
    y = torch.nn.functional.conv2d(*wide, None, stride, padding, dilation, g.groups)
    y.backward(grad.double())
    a, b, c = array(x), array(weight), array(grad)
    found = [naive.convolution(a, b, None, g, False), naive.input_gradient(b, c, g, False)]
    found.append(naive.weight_gradient(a, c, g, False))
    for got, want in zip(found, (y, wide[0].grad, wide[1].grad), strict=True):
        assert want is not None and np.array_equal(got, want.detach().numpy())


def test_padding_is_multiplied_too() -> None:
    """A weight that is infinite times a zero of the padding is NaN; a negative one gives no -0 to the chain."""
    g = Geometry.of((1, 1, 1, 1), (1, 1, 1, 2), (1, 1), (0, 1), (1, 1), 1)
    x = torch.ones(1, 1, 1, 1)
    got = forward(x, torch.tensor([[[[math.inf, 1.0]]]]), None, g, False).flatten()
    assert bool(got[0].isnan()) and math.isinf(got[1])
    zero = forward(-x * 0, torch.full((1, 1, 1, 2), 1.0), None, g, False)
    assert not bool(zero.signbit().any())


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 2, 0, 3)])
def test_no_samples_or_no_positions(shape: tuple[int, ...]) -> None:
    weight = numbers(4, 2, 1, 1)
    g = Geometry.of(shape, tuple(weight.shape), (1, 1), (0, 0), (1, 1), 1)
    assert forward(torch.empty(shape), weight, None, g, False).shape == (shape[0], 4, *shape[2:])
    grad = torch.empty(shape[0], 4, *shape[2:])
    assert_same(weight_gradient(torch.empty(shape), grad, g, False), np.zeros((4, 2, 1, 1), np.float32))


def test_no_channels() -> None:
    """No terms: zeros, or the bias."""
    g = Geometry(2, 0, 3, 3, 4, 1, 1, 1, 1, 0, 0, 1, 1, 3, 3, 1)
    x, weight, bias = torch.empty(2, 0, 3, 3), torch.empty(4, 0, 1, 1), numbers(4)
    assert_same(forward(x, weight, None, g, False), np.zeros((2, 4, 3, 3), np.float32))
    assert_same(forward(x, weight, bias, g, False), array(bias.view(1, 4, 1, 1).expand(2, 4, 3, 3)))
