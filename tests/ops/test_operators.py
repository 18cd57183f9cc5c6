"""Operators for users: gradients against float64, token by token, as torch registers them, in steps and outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vtrain import ops
from vtrain.engine import sdpa
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import OperandError
from vtrain.ops.linear import scan_backward_op, scan_op
from vtrain.ops.softmax import attention_backward_op, attention_op
from vtrain.policy import Policy

Tensor = torch.Tensor
ORDERS: list[dict[str, Any]] = [{}, {"lag": 3}, {"block": 2}, {"whole": True}]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wanting(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def near(a: Tensor, b: Tensor, most: float = 3e-6) -> bool:
    return a.shape == b.shape and float((a.double() - b).detach().abs().max()) <= most * float(b.detach().abs().max())


# ---- scans -----------------------------------------------------------------------------------------------------------
def scan_in_float64(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, **order: Any
) -> tuple[Tensor, Tensor]:
    length, decay, states = q.shape[2], log_decay.exp().expand(q.shape), [initial]
    for t in range(length):
        states.append(decay[:, :, t, :, None] * states[-1] + k[:, :, t, :, None] * v[:, :, t, None])

    def reach(t: int) -> int:
        if order.get("whole"):
            return length
        block = order.get("block")
        return max(0, (t // block - 1) * block) if block else max(0, t + 1 - order.get("lag", 0))

    return torch.stack([(q[:, :, t, :, None] * states[reach(t)]).sum(2) for t in range(length)], 2), states[-1]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 2, 9, 1), (2, 2, 9, 5)])
def test_gradients_of_a_scan(order: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Of each input alone, by way of the results and of the last state."""
    q, k, v = wanting(numbers(2, 2, 9, 5, seed=1), numbers(2, 2, 9, 5, seed=2), numbers(2, 2, 9, 3, seed=3))
    log_decay, initial = wanting(-numbers(*shape, seed=4).abs(), numbers(2, 2, 5, 3, seed=5))
    inputs, wide = (
        (q, k, v, log_decay, initial),
        [t.detach().double().requires_grad_() for t in (q, k, v, log_decay, initial)],
    )
    y, state = ops.scan(q, k, v, log_decay=log_decay, initial=initial, **order)
    exact_y, exact_state = scan_in_float64(*wide, **order)
    assert near(y, exact_y) and near(state, exact_state)
    for grads in ((numbers(*y.shape, seed=6), None), (None, numbers(*state.shape, seed=7))):
        kept = [(a, b, g) for a, b, g in zip((y, state), (exact_y, exact_state), grads, strict=True) if g is not None]
        mine = torch.autograd.grad(
            [a for a, _, _ in kept], inputs, [g for *_, g in kept], retain_graph=True, allow_unused=True
        )
        wanted = torch.autograd.grad(
            [b for _, b, _ in kept], wide, [g.double() for *_, g in kept], retain_graph=True, allow_unused=True
        )
        for a, b in zip(mine, wanted, strict=True):
            assert (a is None or not a.any()) if b is None else near(a, b)


def test_linear_attention_and_its_denominator() -> None:
    q, k, v = wanting(
        numbers(1, 2, 12, 6, seed=1).exp(), numbers(1, 2, 12, 6, seed=2).exp(), numbers(1, 2, 12, 4, seed=3)
    )
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    weights = (wide[0] @ wide[1].mT).tril()
    exact = weights @ wide[2] / weights.sum(-1, keepdim=True)
    y, _ = ops.linear_attention(q, k, v)
    grad = numbers(*y.shape, seed=4)
    assert near(y, exact)
    mine, wanted = torch.autograd.grad(y, (q, k, v), grad), torch.autograd.grad(exact, wide, grad.double())
    assert all(map(near, mine, wanted))


@pytest.mark.parametrize("normalise", [True, False])
def test_token_by_token(normalise: bool) -> None:
    q, k, v = numbers(2, 2, 33, 6).exp(), numbers(2, 2, 33, 6, seed=1).exp(), numbers(2, 2, 33, 5, seed=2)
    decay = -numbers(2, 2, 33, 1, seed=3).abs()
    whole, last = ops.linear_attention(q, k, v, log_decay=decay, normalise=normalise)
    state, found = None, []
    for t in range(33):
        at = (slice(None), slice(None), slice(t, t + 1))
        y, state = ops.linear_attention(q[at], k[at], v[at], log_decay=decay[at], initial=state, normalise=normalise)
        found.append(y)
    assert torch.equal(torch.cat(found, 2), whole)
    assert torch.equal(state[0], last[0]) and (not normalise or torch.equal(state[1], last[1]))  # type: ignore[index,arg-type]


# ---- attention -------------------------------------------------------------------------------------------------------
def test_gradients_of_attention() -> None:
    q, k, v = wanting(numbers(2, 4, 20, 8, seed=1), numbers(2, 2, 20, 8, seed=2), numbers(2, 2, 20, 6, seed=3))
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    keys, values = (t.repeat_interleave(2, 1) for t in wide[1:])
    at = torch.arange(20)
    seen = (at[:, None] >= at) & (at[:, None] - at < 7)
    exact = torch.where(seen, wide[0] @ keys.mT * 0.3, -math.inf).softmax(-1) @ values
    y = ops.attention(q, k, v, window=7, scale=0.3)
    grad = numbers(*y.shape, seed=4)
    assert near(y, exact)
    assert all(map(near, torch.autograd.grad(y, (q, k, v), grad), torch.autograd.grad(exact, wide, grad.double())))


GRADIENTS: list[dict[str, Any]] = [
    {}, {"window": 7}, {"block": 4}, {"dropout": 0.3}, {"mask": numbers(9, 9) > 0}, {"mask": numbers(9, 9)},
]  # fmt: skip


@pytest.mark.parametrize("given", GRADIENTS, ids=str)
def test_gradients_of_gradients(given: dict[str, Any]) -> None:
    """A gradient that has one of its own is made of parts, with the same bits; its own is right."""
    q, k, v = numbers(1, 4, 9, 6, seed=1), numbers(1, 2, 9, 6, seed=2), numbers(1, 2, 9, 5, seed=3)
    grad, other = numbers(1, 4, 9, 5, seed=4), [numbers(*t.shape, seed=5) for t in (q, k, v)]

    def work() -> list[Tensor]:
        inputs = wanting(q, k, v)
        y = ops.attention(*inputs, **given)
        once = torch.autograd.grad(y, inputs, grad, retain_graph=True)
        again = torch.autograd.grad(y, inputs, grad, create_graph=True)
        assert all(torch.equal(a + 0.0, b + 0.0) for a, b in zip(once, again, strict=True))
        return [*again, *torch.autograd.grad(again, inputs, other)]

    found = stepped(work, matmul="chain")[0]
    if "dropout" in given:
        return
    wide = [t.double().requires_grad_() for t in (q, k, v)]
    keys, values = (t.repeat_interleave(2, 1) for t in wide[1:])
    at = torch.arange(9)
    ages = at[:, None] - at
    seen, scores = ages >= -9, wide[0] @ keys.mT / math.sqrt(6)
    if "window" in given:
        seen = (ages >= 0) & (ages < 7)
    if "block" in given:
        seen = (ages >= 0) & (at >= (at[:, None] // 4 - 1) * 4)
    if "mask" in given:
        seen, scores = (given["mask"], scores) if given["mask"].dtype is torch.bool else (seen, scores + given["mask"])
    exact = torch.where(seen, scores, -math.inf).softmax(-1) @ values
    once = torch.autograd.grad(exact, wide, grad.double(), create_graph=True)
    twice = torch.autograd.grad(once, wide, [t.double() for t in other])
    assert all(near(a, b, 1e-5) for a, b in zip(found, (*once, *twice), strict=True))


def test_transforms_of_functions() -> None:
    """torch.func takes torch's attention apart, inside a step as outside."""
    q, k = numbers(3, 2, 2, 5, 4), numbers(3, 2, 2, 5, 4, seed=1)

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, is_causal=True).sum()

    def one_by_one() -> list[Tensor]:
        (a,) = wanting(q)
        return [torch.autograd.grad(sum(loss(a[i], k[i]) for i in range(3)), a)[0]]

    found, _ = stepped(lambda: [torch.func.vmap(torch.func.grad(loss))(q, k)], matmul="chain")
    assert torch.equal(found[0], stepped(one_by_one, matmul="chain")[0][0])


def test_decoding_with_a_cache() -> None:
    q, k, v = numbers(1, 4, 30, 8), numbers(1, 2, 30, 8, seed=1), numbers(1, 2, 30, 8, seed=2)
    whole = ops.attention(q, k, v, causal=True)
    steps = [
        ops.attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True, start=t) for t in range(30)
    ]
    assert torch.equal(torch.cat(steps, 2), whole)


def test_left_padding_changes_nothing() -> None:
    """Sequences of several lengths in one batch have the bits that each has alone; gradients too; and so in scans."""
    lengths, most = (30, 17, 1), 30
    q, k, v, grad = (numbers(3, 2, most, n, seed=n) for n in (8, 8 + 1, 8 + 2, 8 + 3))
    k, v, grad = k[..., :8], v[..., :8], grad[..., :8]
    padding = torch.tensor([most - n for n in lengths])
    for given in ({"causal": True}, {"window": 5}, {"block": 4}):
        inputs = wanting(q, k, v)
        y = ops.attention(*inputs, padding=padding, **given)
        grads = torch.autograd.grad(y, inputs, grad)
        for b, n in enumerate(lengths):
            alone = wanting(*(t[b : b + 1, :, most - n :] for t in (q, k, v)))
            z = ops.attention(*alone, **given)
            back = torch.autograd.grad(z, alone, grad[b : b + 1, :, most - n :])
            assert torch.equal(y[b : b + 1, :, most - n :], z) and not y[b, :, : most - n].any()
            for whole, mine in zip(grads, back, strict=True):
                assert torch.equal(whole[b : b + 1, :, most - n :], mine) and not whole[b, :, : most - n].any()
    real = (torch.arange(most) >= padding.unsqueeze(1)).view(3, 1, most, 1)
    y, (state, z) = ops.linear_attention(q.exp(), torch.where(real, k.exp(), 0.0), v, log_decay=-torch.ones(()))
    for b, n in enumerate(lengths):
        at = (slice(b, b + 1), slice(None), slice(most - n, None))
        alone_y, (alone_state, alone_z) = ops.linear_attention(
            q.exp()[at], k.exp()[at], v[at], log_decay=-torch.ones(())
        )
        assert torch.equal(y[at], alone_y) and torch.equal(state[b : b + 1], alone_state)
        assert z is not None and alone_z is not None and torch.equal(z[b : b + 1], alone_z)


# ---- as torch wants operators ----------------------------------------------------------------------------------------
Q, K, V = numbers(1, 2, 7, 4), numbers(1, 2, 7, 4, seed=1), numbers(1, 2, 7, 3, seed=2)
ROWS = numbers(1, 2, 7).exp()
REGISTERED: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (attention_op, (*wanting(Q, K, V), None, None, None, None, 0, 0, True, 0, 0, 0.5, 0.5, 0.0)),
    (
        attention_op,
        (
            *wanting(Q, K, V),
            numbers(7, 7),
            None,
            torch.tensor([2]),
            torch.tensor([3, 4, 5]),
            1,
            2,
            False,
            0,
            0,
            0.5,
            0.5,
            0.25,
        ),
    ),
    (attention_backward_op, (V, Q, K, V, None, Q[..., 0] > 0, None, None, ROWS, ROWS, 0, 0, True, 0, 0, 0.5, 0.5, 0.0)),
    (scan_op, (*wanting(Q, K, V), *wanting(-ROWS.unsqueeze(-1), numbers(1, 2, 4, 3)), 0, 1)),
    (scan_op, (*wanting(Q, K, V), None, None, 2, 0)),
    (scan_backward_op, (V, None, Q, K, V, -ROWS.unsqueeze(-1), None, numbers(1, 2, 4, 3), 1, 2)),
]


@pytest.mark.parametrize(("operator", "arguments"), REGISTERED[:2] + REGISTERED[3:])
def test_opcheck(operator: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_operands_are_widened_and_the_result_is_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in (Q, K, V))
    assert torch.equal(ops.attention(q, k, v), ops.attention(q.float(), k.float(), v.float()).to(dtype))
    y, state = ops.scan(q, k, v)
    wide, wide_state = ops.scan(q.float(), k.float(), v.float())
    assert torch.equal(y, wide.to(dtype)) and torch.equal(state, wide_state)


# ---- inside steps ----------------------------------------------------------------------------------------------------
def stepped(work: Callable[[], list[Tensor]], **policy: Any) -> tuple[list[Tensor], list[str]]:
    session = Session(Plain(), Policy(**policy), 0)
    with session.step(1):
        found = work()
    return [t.detach() for t in found], session.engine.sites


def attended(given: dict[str, Any], dtype: torch.dtype, key_heads: int) -> Callable[[], list[Tensor]]:
    def work() -> list[Tensor]:
        q, k, v = wanting(*(numbers(2, h, 37, 16, seed=h).to(dtype) for h in (4, key_heads, key_heads)))
        y = F.scaled_dot_product_attention(q, k, v, **given)
        return [y, *torch.autograd.grad(y, (q, k, v), numbers(*y.shape, seed=9).to(dtype))]

    return work


GIVEN: list[tuple[dict[str, Any], int]] = [
    ({}, 4), ({"is_causal": True}, 4), ({"is_causal": True, "enable_gqa": True}, 2), ({"scale": -0.3}, 4),
    ({"dropout_p": 0.3}, 4), ({"dropout_p": 0.1, "is_causal": True, "enable_gqa": True}, 2),
    ({"attn_mask": numbers(37, 37) > 0}, 4), ({"attn_mask": numbers(2, 1, 37, 37)}, 4),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("given", "key_heads"), GIVEN, ids=str)
def test_torch_s_attention_is_one_operation_with_the_bits_of_its_parts(
    given: dict[str, Any], key_heads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = attended(given, dtype, key_heads)
    fused, sites = stepped(work, matmul="chain")
    default, _ = stepped(work)
    monkeypatch.setattr(sdpa, "fuses", lambda engine: False)
    parts, others = stepped(work, matmul="chain")
    assert any("vtrain.attention.default" in s for s in sites) and not any("softmax" in s for s in sites)
    assert any("softmax" in s for s in others)
    for a, b, c in zip(fused, parts, default, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize(
    ("policy", "given"),
    [({"matmul": "chain64"}, {}), ({"matmul": "integer"}, {}), ({"other": "logged"}, {}),
     ({"accumulator": "tensor_core"}, {}), ({}, {"dropout_p": 1.0})],
)  # fmt: skip
def test_where_it_is_taken_apart(policy: dict[str, Any], given: dict[str, Any]) -> None:
    _, sites = stepped(attended(given, torch.float32, 4), **policy)
    assert not any("vtrain." in s for s in sites)


def test_outside_steps_torch_s_own_runs() -> None:
    stepped(attended({}, torch.float32, 4))  # registers ours
    q, k, v = numbers(1, 2, 9, 8), numbers(1, 2, 9, 8, seed=1), numbers(1, 2, 9, 8, seed=2)
    exact = ((q.double() @ k.double().mT) / math.sqrt(8)).softmax(-1) @ v.double()
    assert near(F.scaled_dot_product_attention(q, k, v), exact)


def test_steps_have_the_bits_of_outside() -> None:
    grads = [numbers(1, 2, *shape, seed=5) for shape in ((7, 3), (4, 3), (7, 3))]

    def work() -> list[Tensor]:
        q, k, v, decay = wanting(Q, K, V, -ROWS.unsqueeze(-1))
        y, state = ops.scan(q, k, v, log_decay=decay, lag=1)
        out = ops.attention(q, k, v, window=3)
        return [y, state, out, *torch.autograd.grad([y, state, out], (q, k, v, decay), grads)]

    found, sites = stepped(work)
    ours = [s for s in sites if "vtrain." in s]
    assert len(ours) > 10 and all("canonical" in s for s in ours)
    outside = [t.detach() for t in work()]
    assert all(map(torch.equal, found[:3], outside[:3]))
    assert all(near(a, b.double(), 1e-6) for a, b in zip(found[3:], outside[3:], strict=True))  # autograd adds them up


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ops.attention(Q, K, V.double()), "v is torch.float64; want float32"),
        (lambda: ops.attention(Q[0], K, V), "q is [2, 7, 4]; want (batch, heads"),
        (lambda: ops.attention(Q, K, V, window=0), "window is 0, want 1 or more"),
        (lambda: ops.attention(Q, K, V, mask=torch.ones(7, 7, requires_grad=True)), "mask wants a gradient"),
        (lambda: ops.attention(Q, K, V, mask=torch.ones(7, 7, dtype=torch.int64)), "mask is torch.int64"),
        (lambda: ops.scan(Q, K[:, :, :5], V), "which don't fit"),
        (lambda: ops.scan(Q, K, V, lag=1, whole=True), "want at most one"),
        (lambda: ops.scan(Q, K, V, initial=numbers(1, 2, 3, 4)), "initial is torch.float32 [1, 2, 3, 4], want"),
        (lambda: ops.scan(Q, K, V, log_decay=numbers(1, 2, 7, 4, 1)), "log_decay is"),
        (lambda: ops.linear_attention(Q, K, V, initial=(numbers(1, 2, 4, 3), None)), "initial has no z"),
    ],
)
def test_wrong_operands_are_named(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(OperandError) as caught:
        call()
    assert text in str(caught.value)
