"""Products in canonical order: plain, block-diagonal, Monarch; against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_operators import near, numbers, stepped, wanting

from vtrain import ops
from vtrain.errors import OperandError
from vtrain.ops.products import chain_product_op

Tensor = torch.Tensor


def test_a_product_and_its_gradients_under_every_policy() -> None:
    a, b, grad = numbers(2, 5, 7), numbers(2, 7, 3, seed=1), numbers(2, 5, 3, seed=2)

    def work() -> list[Tensor]:
        x, y = wanting(a, b)
        z = ops.chain_product(x, y)
        return [z, *torch.autograd.grad(z, (x, y), grad)]

    def torchs() -> list[Tensor]:
        x, y = wanting(a, b)
        z = x @ y
        return [z, *torch.autograd.grad(z, (x, y), grad)]

    wanted, _ = stepped(torchs, matmul="chain")
    for policy in ({}, {"matmul": "chain"}, {"matmul": "integer"}, {"other": "logged"}):
        found, sites = stepped(work, **policy)
        assert all(map(torch.equal, found, wanted)) and all("canonical" in s for s in sites if "vtrain." in s)
    assert all(map(torch.equal, (t.detach() for t in work()), wanted))


def dense(factors: list[Tensor]) -> Tensor:
    """The matrix of block-diagonal factors, written out as the definition says, rows of the result first."""
    found = None
    for i, w in enumerate(factors):
        blocks, q, p = w.shape
        matrix = torch.block_diag(*w)
        if i:
            where = [n % blocks * p + n // blocks for n in range(blocks * p)]
            mixing = torch.zeros(blocks * p, blocks * p, dtype=w.dtype)
            mixing[where, range(blocks * p)] = 1
            matrix = matrix @ mixing
        found = matrix if found is None else matrix @ found
    assert found is not None
    return found.unflatten(0, (blocks, q)).transpose(0, 1).flatten(0, 1)


SHAPES = [
    [(4, 4, 4), (4, 4, 4)],
    [(2, 6, 3), (4, 5, 3)],
    [(3, 2, 5)],
    [(4, 2, 2), (4, 2, 2), (4, 2, 2)],
    [(6, 4, 1), (3, 2, 8)],
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_monarch_is_its_dense_matrix(shapes: list[tuple[int, int, int]]) -> None:
    factors = wanting(*(numbers(*shape, seed=i) for i, shape in enumerate(shapes)))
    (x,) = wanting(numbers(2, 3, shapes[0][0] * shapes[0][2], seed=9))
    wide = [t.detach().double().requires_grad_() for t in (x, *factors)]
    y, exact = ops.monarch(x, factors), wide[0] @ dense(wide[1:]).mT
    grad = numbers(*y.shape, seed=8)
    assert near(y, exact)
    mine, wanted = torch.autograd.grad(y, (x, *factors), grad), torch.autograd.grad(exact, wide, grad.double())
    assert all(map(near, mine, wanted))


def test_monarch_of_order_two_as_it_is_written() -> None:
    """y[s b + l] = sum over r of W2[l, s, r] sum over i of W1[r, l, i] x[r b + i], square factors of b blocks."""
    b, x = 3, numbers(9)
    w1, w2 = numbers(b, b, b, seed=1), numbers(b, b, b, seed=2)
    inner = torch.einsum("rli,ri->lr", w1.double(), x.double().view(b, b))
    assert near(ops.monarch(x, [w1, w2]), torch.einsum("lsr,lr->sl", w2.double(), inner).flatten())


def test_opcheck() -> None:
    arguments = wanting(numbers(2, 3, 4), numbers(2, 4, 5))
    assert set(torch.library.opcheck(chain_product_op, tuple(arguments)).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.chain_product(numbers(2, 3, 4), numbers(2, 5, 4)), "which don't fit"),
        (lambda: ops.chain_product(numbers(3, 4), numbers(2, 4, 4)), "a is torch.float32 [3, 4]"),
        (lambda: ops.block_diagonal(numbers(5), numbers(2, 3, 3)), "x is [5] and weight [2, 3, 3]"),
        (lambda: ops.monarch(numbers(4), []), "no factors"),
        (lambda: ops.monarch(numbers(4), [numbers(2, 2, 2), numbers(3, 2, 2)]), "factor 1 is [3, 2, 2], and gets 4"),
    ],
)
def test_wrong_operands_are_named(call: Callable[[], Tensor], text: str) -> None:
    with pytest.raises(OperandError) as caught:
        call()
    assert text in str(caught.value)
