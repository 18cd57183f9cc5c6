"""Softmax attention (numerics §3)."""

from __future__ import annotations

import math
from typing import Any

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.kernels.canonical import Sight
from vtrain.ops.draws import coins, draw_op, dropout_of
from vtrain.ops.products import chain_product
from vtrain.ops.shared import F32, Tensor, check_heads, lifted


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None, block: int | None = None,
    mask: Tensor | None = None, scale: float | None = None, start: int = 0, offset: int = 0,
    padding: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(scale * q k^T + mask) v, never materialised: memory grows with the length.

    The bits are those of ``scaled_dot_product_attention`` taken apart: q and k times the root of the scale, products as
    chains of fused multiply-adds over ascending positions, softmax with a float64 sum, an operation rounded to float32
    each (``kernels/reductions/attention.hpp``). They do not depend on what else is in the batch, on where a sequence is
    cut (``start``), or on threads. 16-bit operands are widened, and the result is rounded once. What a query does not
    see is left out, not weighted by zero; a query that sees nothing gives 0.

    Args:
        q: ``(batch, heads, queries, d)``; float32, bfloat16 or float16.
        k, v: ``(batch, key heads, keys, d)`` and ``(batch, key heads, keys, width)``; heads are a multiple of key
            heads, and neighbours share one.
        causal: a query sees no key after its own position.
        window: it sees so many keys, its own the last; means ``causal``.
        block: it sees its own block of so many positions up to its own and the block before; means ``causal``.
        mask: broadcastable to ``(batch, heads, queries, keys)``: of bool, False where a key is not seen; else added to
            scores. It gets no gradient.
        scale: of scores; 1 / sqrt(d) by default.
        start: position of the first query, as in decoding with a cache of keys.
        offset: position of the first key of k and v, where a cache has dropped those before: a window's last keys, say.
            Sums go by positions, so the bits are those of all keys.
        padding: positions that each batch entry begins with and are none, int64 ``(batch,)``: the others count from
            behind them, so that the bits are those of the sequence alone. Their own results are 0 where ``causal``.
        dropout: probability with which a weight is dropped, by a draw of torch's global generator; others are divided
            by 1 - dropout.

    Returns:
        ``(batch, heads, queries, width)`` of q's dtype.

    Raises:
        OperandError: shapes or dtypes that don't fit; names them.
    """
    _check(q, k, v, mask, padding)
    factor = 1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    root = math.sqrt(abs(factor))
    for name, value in (("window", window), ("block", block)):
        if value is not None and value < 1:
            raise OperandError(f"attention: {name} is {value}, want 1 or more")
    bias, seen = (None, mask) if mask is not None and mask.dtype is torch.bool else (mask, None)
    if not 0 <= dropout <= 1:
        raise OperandError(f"attention: dropout is {dropout}, want a probability")
    draw = draw_op(q) if 0 < dropout < 1 else None
    causal = causal or window is not None or block is not None
    roots = math.copysign(root, factor), root
    out = torch.ops.vtrain.attention(
        q, k, v, bias, seen, padding, draw, offset, start, causal, window or 0, block or 0, *roots, dropout
    )[0]
    return out * torch.zeros((), dtype=out.dtype, device=out.device) if dropout == 1 else out


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, padding: Tensor | None) -> None:
    check_heads("attention", q, k, v)
    if padding is not None and (padding.dtype is not torch.int64 or padding.shape != q.shape[:1]):
        raise OperandError(
            f"attention: padding is {padding.dtype} {list(padding.shape)}, want torch.int64 {[q.shape[0]]}"
        )
    if mask is not None and mask.requires_grad:
        raise OperandError(
            "attention: mask wants a gradient, which takes scores for all pairs; use "
            "torch.nn.functional.scaled_dot_product_attention, or mask.detach()"
        )
    if mask is not None and mask.dtype is not torch.bool and not mask.is_floating_point():
        raise OperandError(f"attention: mask is {mask.dtype}; want bool, or a floating-point type to add to scores")


def sight_of(
    draw: Tensor | None, offset: int, start: int, causal: bool, window: int, block: int, q_scale: float,
    k_scale: float, dropout: float,
) -> Sight:  # fmt: skip
    """What the operators' arguments mean to the kernels."""
    return Sight(start, causal, window, block, q_scale, k_scale, dropout_of(draw, dropout), offset)


def over_groups(x: Tensor, key_heads: int) -> Tensor:
    """Gradients of each query's head ``(batch, heads, ...)`` added for each key head, ascending: float32."""
    if x.shape[1] == key_heads or not x.numel():
        return x[:, :key_heads]
    grouped = x.view(x.shape[0], key_heads, -1, *x.shape[2:])
    return canonical.sum_terms("value", [2], grouped).to(F32)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, *sight: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out in float32, and each query's largest score and sum of weights."""
    q, k, v, bias = lifted(q, k, v, bias)
    return canonical.attention(q, k, v, sight_of(draw, *sight), bias, mask, padding)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, top: Tensor, total: Tensor, *sight: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v in float32."""
    grad, q, k, v, bias = lifted(grad, q, k, v, bias)
    seen = sight_of(draw, *sight)
    dq, dk, dv, _ = canonical.attention_backward(grad, q, k, v, top, total, seen, bias, mask, padding)
    return dq, over_groups(dk, k.shape[1]), over_groups(dv, k.shape[1])


@torch.library.custom_op("vtrain::attention", mutates_args=())
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, offset: int, start: int, causal: bool, window: int, block: int, q_scale: float,
    k_scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out, and each query's largest score and sum of weights."""
    sight = offset, start, causal, window, block, q_scale, k_scale, dropout
    out, top, total = forward(q, k, v, bias, mask, padding, draw, *sight)
    return out.to(q.dtype), top, total


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = [q.new_empty(q.shape[:3], dtype=F32) for _ in range(2)]
    return q.new_empty((*q.shape[:3], v.shape[3])), rows[0], rows[1]


@torch.library.custom_op("vtrain::attention_backward", mutates_args=())
def attention_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, top: Tensor, total: Tensor, offset: int, start: int, causal: bool, window: int, block: int,
    q_scale: float, k_scale: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    sight = offset, start, causal, window, block, q_scale, k_scale, dropout
    dq, dk, dv = backward(grad, q, k, v, bias, mask, padding, draw, top, total, *sight)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@attention_backward_op.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _apart(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    padding: Tensor | None,
    draw: Tensor | None,
    *sight: Any,
) -> Tensor:
    """The same by operations one after the other, which materialise weights; the same bits, but for zeros' signs."""
    s = sight_of(draw, *sight)
    batch, heads, queries, _ = q.shape
    keys, group = k.shape[2], heads // max(1, k.shape[1])
    wide_q, wide_k, wide_v = (t.to(F32) for t in (q, k, v))
    wide_k, wide_v = (t.repeat_interleave(group, 1).flatten(0, 1) for t in (wide_k, wide_v))
    scores = chain_product((wide_q * s.q_scale).flatten(0, 1), (wide_k * s.k_scale).mT).view(
        batch, heads, queries, keys
    )
    scores = scores if bias is None else scores + bias.to(F32)
    none = torch.full((), -math.inf, device=q.device)
    scores = torch.where(_seen(s, queries, keys, mask, padding, q.device), scores, none)
    blind = (scores == none).all(-1, keepdim=True)
    zero = torch.zeros((), device=q.device)
    p = torch.where(blind, zero, torch.where(blind, zero, scores).softmax(-1))
    if s.dropout is not None:
        p = p * coins(s.dropout, p.shape).to(q.device)
    return chain_product(p.flatten(0, 1), wide_v).view(batch, heads, queries, -1).to(q.dtype)


def _seen(
    s: Sight, queries: int, keys: int, mask: Tensor | None, padding: Tensor | None, device: torch.device
) -> Tensor:
    none = torch.zeros((), dtype=torch.int64, device=device) if padding is None else padding.view(-1, 1, 1, 1)
    at = torch.arange(s.start, s.start + queries, device=device).unsqueeze(1) - none
    j = torch.arange(s.offset, s.offset + keys, device=device) - none
    seen = (j >= 0) & (j <= at if s.causal else at == at)
    if s.window:
        seen = seen & (j > at - s.window)
    if s.block:
        seen = seen & (j >= (at // s.block - 1) * s.block)
    return seen if mask is None else seen & mask


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.sight = inputs[7:]


def _back(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph: by the parts, each of which has gradients of its own
        q, k, v, bias, mask, padding, draw, _, _ = ctx.saved_tensors
        wanted = [t for t in (q, k, v) if t.requires_grad]
        out = _apart(q, k, v, bias, mask, padding, draw, *ctx.sight)
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        rest = [None] * (4 + len(ctx.sight))
        return (*(next(grads) if t.requires_grad else None for t in (q, k, v)), *rest)
    found = torch.ops.vtrain.attention_backward(grad, *ctx.saved_tensors, *ctx.sight)
    return (*found, None, None, None, None, *[None] * len(ctx.sight))


attention_op.register_autograd(_back, setup_context=_keep)
