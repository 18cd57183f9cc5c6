"""No order of a sum or a product leaves the compute type's range: otherwise no error bound would hold."""

from __future__ import annotations

import itertools

import pytest
import torch

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy

BIG = [3e38, 3e38, -3e38, -3e38]


@pytest.mark.parametrize("policy", [Policy(target="bfloat16"), Policy(bits=8), Policy()])
def test_products_near_the_top_of_the_range(policy: Policy) -> None:
    """A partial sum that overflows float32 in one order and not in another."""
    found = set()
    for order in set(itertools.permutations(BIG)):
        with Session(Plain(), policy, 0).step(1):
            row = torch.tensor([order])
            found.add(float(row @ torch.ones(4, 1)))
            found.add(float(torch.nn.functional.conv1d(row.view(1, 1, 4), torch.ones(1, 1, 4))))
            found.add(float(torch.nn.functional.linear(row, torch.ones(1, 4), torch.zeros(1))))
    assert found == {0.0}


def test_a_bfloat16_module_near_the_top() -> None:
    with Session(Plain(), Policy(), 0).step(1):
        row = torch.tensor([BIG], dtype=torch.bfloat16)
        assert float(row @ torch.ones(4, 1, dtype=torch.bfloat16)) == 0.0


def test_what_overflows_in_every_order_is_infinite() -> None:
    with Session(Plain(), Policy(target="bfloat16"), 0).step(1):
        y = torch.full((1, 4), 3e38) @ torch.ones(4, 1)
        z = torch.tensor([[float("inf"), 1.0]]) @ torch.ones(2, 1)
        assert float(y) == float("inf")
        assert float(z) == float("inf")
        assert bool((torch.tensor([[float("inf"), -float("inf")]]) @ torch.ones(2, 1)).isnan())


def test_products_of_many_factors() -> None:
    """1e30^12 * 1e-30^12 passes 1e360 in one order, and 1e-360 in another."""
    factors = [1e30] * 12 + [1e-30] * 12
    orders = [factors, factors[::-1], [f for pair in zip(factors[:12], factors[12:], strict=True) for f in pair]]
    found, running = set(), set()
    for order in orders:
        with Session(Plain(), Policy(), 0).step(1):
            x = torch.tensor(order)
            found.add(float(x.prod()))
            running.add(float(x.cumprod(0)[-1]))
    assert len(found) == len(running) == 1
    assert found == running
    assert abs(found.pop() - 1) < 1e-5


def test_products_with_special_values() -> None:
    with Session(Plain(), Policy(), 0).step(1):
        assert float(torch.tensor([3.0, 0.0, -2.0]).prod()) == 0.0
        assert float(torch.tensor([3.0, float("inf")]).prod()) == float("inf")
        assert bool(torch.tensor([3.0, float("nan")]).prod().isnan())
        assert float(torch.tensor([1e30, 1e30]).prod()) == float("inf")
        assert float(torch.tensor([1e-30, 1e-30]).prod()) == 0.0
