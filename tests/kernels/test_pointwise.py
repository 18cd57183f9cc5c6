"""Activations against their sequences of float32 operations, and functions of every type, in every bit."""

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

SIZES = [1, 31, 32, 33, 4095, 4096, 4097, 20000]


@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh", "silu"])
def test_activations(name: str) -> None:
    for n in SIZES:
        for x, grad in (
            (numbers(n, seed=40, spread=3), numbers(n, seed=41)),
            (strange(n, seed=42), strange(n, seed=43)),
        ):
            assert_same(canonical.activation(name, x), naive.activation(name, array(x), None))
            assert_same(canonical.activation(name, x, grad), naive.activation(name, array(x), array(grad)))
    square = numbers(30, 40, seed=44).T
    assert_same(canonical.activation(name, square), naive.activation(name, array(square), None))
    assert canonical.activation(name, torch.empty(0)).shape == (0,)


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (0.1, 20.0), (3.7, 5.0), (-2.0, 0.0), (0.0, 1.0)])
def test_softplus(beta: float, threshold: float) -> None:
    edge = torch.tensor(
        [threshold, math.nextafter(threshold, math.inf), threshold + 1e-5, math.nan, math.inf, -math.inf]
    )
    for x in (numbers(4097, seed=45, spread=4), strange(333, seed=46), edge):
        grad = numbers(*x.shape, seed=47)
        got = canonical.activation("softplus", x, None, beta, threshold)
        assert_same(got, naive.softplus(array(x), None, beta, threshold))
        got = canonical.activation("softplus", x, grad, beta, threshold)
        assert_same(got, naive.softplus(array(x), array(grad), beta, threshold))


@pytest.mark.parametrize("name", sorted(canonical.FUNCTIONS - {"sin", "cos"}))
def test_functions_of_any_type_round_one_result(name: str) -> None:
    """float32 in or out differ from float64 by exact widening and one rounding alone; layouts change nothing."""
    x = torch.cat([numbers(4097, seed=48), strange(1000, seed=49)])
    wide = canonical.function(name, x.double(), torch.float64)
    assert_same(canonical.function(name, x, torch.float64), array(wide))
    assert_same(canonical.function(name, x), array(wide.float()))
    assert_same(canonical.function(name, x.double()), array(wide.float()))
    pairs = x[:5096].view(-1, 2)
    assert_same(canonical.function(name, pairs.T, torch.float64), array(wide[:5096].view(-1, 2).T))
    assert canonical.function(name, torch.empty(0, 3)).shape == (0, 3)
