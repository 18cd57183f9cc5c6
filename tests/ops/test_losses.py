"""Cross entropy without logits: the bits of its parts, whatever the chunks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_operators import near, numbers, stepped, wanting

from vtrain import ops
from vtrain.errors import OperandError
from vtrain.ops import losses
from vtrain.ops.losses import linear_cross_entropy_op

Tensor = torch.Tensor
X, W = numbers(23, 12, seed=1), numbers(70, 12, seed=2)
TARGET = torch.arange(23) * 7 % 70
WEIGHTS = numbers(23, seed=3)


def fused() -> list[Tensor]:
    x, w = wanting(X, W)
    y = ops.linear_cross_entropy(x, w, torch.where(torch.arange(23) == 4, -100, TARGET))
    return [y, *torch.autograd.grad(y, (x, w), WEIGHTS)]


def parts() -> list[Tensor]:
    x, w = wanting(X, W)
    target = torch.where(torch.arange(23) == 4, -100, TARGET)
    y = F.cross_entropy(F.linear(x, w), target, reduction="none")
    return [y, *torch.autograd.grad(y, (x, w), WEIGHTS)]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a + 0.0, b + 0.0)


@pytest.mark.parametrize("chunk", [1, 70 * 5, 1 << 22])
def test_it_has_the_bits_of_its_parts(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    found, sites = stepped(fused, matmul="chain")
    assert all(map(same, found, stepped(parts, matmul="chain")[0]))
    assert any("linear_cross_entropy" in s for s in sites) and not any("softmax" in s for s in sites)
    outside = fused()
    assert all(map(same, found, (t.detach() for t in outside)))


def test_against_float64() -> None:
    x, w = wanting(X.double(), W.double())
    y = F.cross_entropy(x @ w.mT, torch.where(torch.arange(23) == 4, -100, TARGET), reduction="none")
    exact = [y, *torch.autograd.grad(y, (x, w), WEIGHTS.double())]
    assert all(map(near, fused(), exact))


def test_opcheck() -> None:
    assert set(torch.library.opcheck(linear_cross_entropy_op, (*wanting(X, W), TARGET)).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.linear_cross_entropy(X, W[:, :5], TARGET), "which don't fit"),
        (lambda: ops.linear_cross_entropy(X, W, TARGET[:5]), "which don't fit"),
        (lambda: ops.linear_cross_entropy(X, W, TARGET + 70), "a target outside of 0 to 69"),
        (lambda: ops.linear_cross_entropy(X.double(), W, TARGET), "x is torch.float64"),
    ],
)
def test_wrong_operands_are_named(call: Callable[[], Tensor], text: str) -> None:
    with pytest.raises(OperandError) as caught:
        call()
    assert text in str(caught.value)
