"""Convolutions with a state, and feature maps: cut anywhere, against float64, inside steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_operators import near, numbers, stepped, wanting

from vtrain import ops
from vtrain.errors import OperandError
from vtrain.ops.convolutions import depthwise_op

Tensor = torch.Tensor


def test_a_short_convolution_and_its_gradients() -> None:
    u, w, b = wanting(numbers(2, 3, 20, seed=1), numbers(3, 4, seed=2), numbers(3, seed=3))
    wide = [t.detach().double().requires_grad_() for t in (u, w, b)]
    for centred in (False, True):
        y, state = ops.short_conv(u, w, b, centred=centred)
        left = 1 if centred else 3
        exact = F.conv1d(F.pad(wide[0], (left, 3 - left)), wide[1].unsqueeze(1), wide[2], groups=3)
        grad = numbers(2, 3, 20, seed=4)
        assert near(y, exact) and (centred or torch.equal(state, u[..., 17:]))
        mine, wanted = torch.autograd.grad(y, (u, w, b), grad), torch.autograd.grad(exact, wide, grad.double())
        assert all(map(near, mine, wanted))


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_cut_at_each_point(taps: int) -> None:
    u, w = numbers(2, 3, 12), numbers(3, taps, seed=1)
    whole, last = ops.short_conv(u, w)
    for cut in range(13):
        first, state = ops.short_conv(u[..., :cut], w)
        rest, end = ops.short_conv(u[..., cut:], w, before=state)
        assert torch.equal(torch.cat([first, rest], 2), whole) and torch.equal(end, last)


def test_a_long_convolution_and_its_gradients() -> None:
    u, w = wanting(numbers(2, 3, 33, seed=1), numbers(3, 33, seed=2))
    wide = [t.detach().double().requires_grad_() for t in (u, w)]
    exact = torch.stack([sum(wide[1][:, t - s] * wide[0][:, :, s] for s in range(t + 1)) for t in range(33)], 2)
    y, grad = ops.long_conv(u, w), numbers(2, 3, 33, seed=4)
    assert near(y, exact)
    assert all(map(near, torch.autograd.grad(y, (u, w), grad), torch.autograd.grad(exact, wide, grad.double())))
    assert torch.equal(ops.long_conv(u[..., :20], w[:, :20]), y[..., :20])


def test_filters_of_another_dtype_as_under_autocast() -> None:
    """Computed in float32 from what each is; every gradient has its own dtype, inside steps too."""
    u, w = numbers(2, 3, 9).bfloat16(), numbers(3, 4, seed=1)
    grad = numbers(2, 3, 9, seed=2).bfloat16()

    def work() -> list[Tensor]:
        a, b = wanting(u, w)
        y, _ = ops.short_conv(a, b)
        return [y, *torch.autograd.grad(y, (a, b), grad)]

    found = stepped(work)[0]
    wide, back = wanting(u.float(), w)
    exact, _ = ops.short_conv(wide, back)
    wanted = [exact, *torch.autograd.grad(exact, (wide, back), grad.float())]
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, wanted, strict=True))
    assert all(map(torch.equal, (t.detach() for t in work()), found))


def test_opcheck() -> None:
    u, w = wanting(numbers(2, 3, 7), numbers(3, 2))
    assert set(torch.library.opcheck(depthwise_op, (u, w, 7, 1)).values()) == {"SUCCESS"}


# ---- feature maps ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("symmetric", [True, False])
def test_taylor_features_give_the_series(symmetric: bool) -> None:
    q, k = numbers(5, 16, seed=1), numbers(7, 16, seed=2)
    s = q.double() @ k.double().mT / 4
    features = [ops.taylor_map(x, symmetric=symmetric) for x in (q, k)]
    assert features[0].shape[-1] == (153 if symmetric else 273)
    assert near(features[0] @ features[1].mT, 1 + s + s * s / 2)


def test_hedgehog_features_are_two_softmaxes() -> None:
    x, w = numbers(2, 3, 5, 4), numbers(3, 4, 6, seed=1)
    y, z = ops.hedgehog_map(x, w), x.double() @ w.double()
    assert near(y, torch.cat([z.softmax(-1), (-z).softmax(-1)], -1))
    assert float(ops.hedgehog_map(x * 1e4, w).min()) == float(torch.tensor(1e-12))


MAPS: dict[str, Any] = {
    "taylor": lambda x, w: ops.taylor_map(x), "all pairs": lambda x, w: ops.taylor_map(x, symmetric=False),
    "hedgehog": ops.hedgehog_map, "relu": lambda x, w: ops.relu_map(x, w, w[:, 0]), "elu": lambda x, w: ops.elu_map(x),
}  # fmt: skip


def hedgehog(x: Tensor, w: Tensor) -> Tensor:
    return torch.cat([(x @ w).softmax(-1), (-(x @ w)).softmax(-1)], -1)


EXACT: dict[str, Any] = {"hedgehog": hedgehog, "relu": lambda x, w: F.relu(x @ w + w[:, 0].unsqueeze(1))}


@pytest.mark.parametrize("name", list(MAPS))
def test_gradients_of_maps_inside_steps(name: str) -> None:
    x, w = numbers(2, 3, 5, 4), numbers(3, 4, 6, seed=1)
    grad = numbers(*MAPS[name](x, w).shape, seed=2)

    def work() -> list[Tensor]:
        a, b = wanting(x, w)
        y = MAPS[name](a, b)
        return [y, *[t for t in torch.autograd.grad(y, (a, b), grad, allow_unused=True) if t is not None]]

    found, _ = stepped(work, matmul="chain")
    a, b = wanting(x.double(), w.double())
    y = EXACT.get(name, MAPS[name])(a, b)
    exact = [y, *[t for t in torch.autograd.grad(y, (a, b), grad.double(), allow_unused=True) if t is not None]]
    assert all(near(m, e) for m, e in zip(found, exact, strict=True))


# ---- positions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved: bool) -> None:
    """A rotation by complex numbers; cut anywhere; its gradient is the inverse rotation; inside steps the same bits."""
    x, grad = numbers(2, 3, 20, 8), numbers(2, 3, 20, 8, seed=1)

    def work() -> list[Tensor]:
        (a,) = wanting(x)
        y = ops.rotary(a, start=1000, interleaved=interleaved)
        return [y, *torch.autograd.grad(y, (a,), grad)]

    y, back = work()
    inner = x if interleaved else x.unflatten(-1, (2, 4)).mT.flatten(-2)
    angles = torch.arange(1000, 1020).double()[:, None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turned = torch.view_as_complex(inner.double().unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    wanted = torch.view_as_real(turned)
    assert near(y, wanted.flatten(-2) if interleaved else wanted.mT.flatten(-2), 1e-6)
    assert near(ops.rotary(back, start=1000, interleaved=interleaved), grad.double(), 1e-6)
    halves = [ops.rotary(x[..., :7, :], start=1000, interleaved=interleaved),
              ops.rotary(x[..., 7:, :], positions=torch.arange(1007, 1020), interleaved=interleaved)]  # fmt: skip
    assert torch.equal(torch.cat(halves, -2), y)
    assert all(map(torch.equal, stepped(work, matmul="chain")[0], (y.detach(), back)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.short_conv(numbers(2, 3, 5), numbers(2, 4)), "u is [2, 3, 5] and w [2, 4]"),
        (lambda: ops.short_conv(numbers(2, 3, 5), numbers(3, 0)), "w has no taps"),
        (
            lambda: ops.short_conv(numbers(2, 3, 5), numbers(3, 4), before=numbers(2, 3, 2)),
            "want torch.float32 [2, 3, 3]",
        ),
        (lambda: ops.short_conv(numbers(2, 3, 5), numbers(3, 4), before=numbers(2, 3, 3), centred=True), "want one"),
        (lambda: ops.rotary(numbers(4, 3)), "with an even d"),
        (lambda: ops.rotary(numbers(4, 2), positions=torch.arange(3)), "positions are [3], want [4]"),
        (lambda: ops.long_conv(numbers(2, 3, 5).double(), numbers(3, 4)), "u is torch.float64"),
        (lambda: ops.hedgehog_map(numbers(2, 3, 5, 4), numbers(2, 4, 4)), "weight [2, 4, 4]"),
    ],
)
def test_wrong_operands_are_named(call: Any, text: str) -> None:
    with pytest.raises(OperandError) as caught:
        call()
    assert text in str(caught.value)
