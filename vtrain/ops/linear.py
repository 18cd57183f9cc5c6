"""Linear attention, with and without decay: scans of a matrix-valued state (numerics §3)."""

from __future__ import annotations

from typing import Any, cast

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.kernels.canonical import Reach
from vtrain.ops.shared import F32, Tensor, check_heads, lifted

State = tuple[Tensor, Tensor | None]


def scan(
    q: Tensor, k: Tensor, v: Tensor, *, log_decay: Tensor | None = None, initial: Tensor | None = None, lag: int = 0,
    block: int | None = None, whole: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A state S_t = exp(log_decay_t) S_(t-1) + k_t v_t^T, and what queries read from it, y_t = S_t^T q_t.

    Linear attention without a denominator; with decays RetNet, Mamba-2's state space duality (k is B, q is C, v is
    delta x, log_decay is delta A), gated linear attention. An element of the state is one chain of fused multiply-adds
    over positions, one of y a chain over features, in float32 (``kernels/reductions/scan.hpp``). So a sequence may be
    cut anywhere, down to single positions, by passing the final state on: the bits are the same.

    Args:
        q, k: feature vectors ``(batch, heads, length, features)``; float32, bfloat16 or float16.
        v: ``(batch, heads, length, width)``.
        log_decay: natural logarithm of what a position's key multiplies the state by before it is added, broadcastable
            to ``(batch, heads, length, features)``. Rounded to float32 after its exponential.
        initial: the state before, ``(batch, heads, features, width)``, float32.
        lag: a query reads the state of so many positions before.
        block: a query reads the state of all keys before the block of so many positions in front of its own.
        whole: every query reads the last state.

    Returns:
        y ``(batch, heads, length, width)`` of q's dtype, and the final state, which holds all keys, in float32.

    Raises:
        OperandError: shapes or dtypes that don't fit; names them.
    """
    _check(q, k, v, log_decay, initial)
    if (lag != 0) + (block is not None) + whole > 1 or lag < 0 or (block is not None and block < 1):
        raise OperandError(
            f"scan: lag={lag}, block={block}, whole={whole}; want at most one of them, and block from 1 on"
        )
    kind, span = (2, 0) if whole else (1, block) if block is not None else (0, lag)
    return cast(tuple[Tensor, Tensor], torch.ops.vtrain.scan(q, k, v, log_decay, initial, kind, span))


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, normalise: bool = True, eps: float = 1e-12, initial: State | None = None,
    **order: Any,
) -> tuple[Tensor, State]:  # fmt: skip
    """Linear attention over feature vectors: y_t = S_t^T q_t / (z_t q_t + eps), z_t the decayed sum of keys.

    The same as ``scan`` with a column of ones beside v, whose results divide the others.

    Args:
        q, k, v: as for ``scan``.
        normalise: divide; else there is no z.
        eps: added to the denominator.
        initial: the states ``(S, z)`` before; z ``(batch, heads, features)`` or None.
        order: ``log_decay``, ``lag``, ``block``, ``whole`` as for ``scan``.

    Returns:
        y ``(batch, heads, length, width)`` and the states after.
    """
    if not normalise:
        y, state = scan(q, k, v, initial=None if initial is None else initial[0], **order)
        return y, (state, None)
    before = None
    if initial is not None:
        if initial[1] is None:
            raise OperandError("linear_attention: initial has no z; want (S, z) with normalise")
        before = torch.cat([initial[0], initial[1].unsqueeze(-1)], -1)
    ones = torch.ones((*v.shape[:-1], 1), dtype=v.dtype, device=v.device)
    y, state = scan(q, k, torch.cat([v, ones], -1), initial=before, **order)
    return y[..., :-1] / (y[..., -1:] + eps), (state[..., :-1], state[..., -1])


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial: Tensor | None) -> None:
    check_heads("scan", q, k, v)
    if q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise OperandError(f"scan: q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}, which don't fit")
    state = (*q.shape[:2], q.shape[3], v.shape[3])
    if initial is not None and (initial.shape != state or initial.dtype is not F32):
        raise OperandError(f"scan: initial is {initial.dtype} {list(initial.shape)}, want torch.float32 {list(state)}")
    if log_decay is not None and not _fits_into(log_decay.shape, q.shape):
        raise OperandError(f"scan: log_decay is {list(log_decay.shape)}, want {list(q.shape)} or less")


def _fits_into(shape: torch.Size, wide: torch.Size) -> bool:
    """Whether it broadcasts to ``wide``."""
    return len(shape) <= len(wide) and all(n in (1, w) for n, w in zip(reversed(shape), reversed(wide), strict=False))


def reach_of(kind: int, span: int) -> Reach:
    """The order of events as operators have it."""
    return Reach(("lag", "blocks", "all")[kind], span)


def decays(log_decay: Tensor | None) -> Tensor | None:
    """exp(log_decay), float32."""
    return None if log_decay is None else canonical.function("exp", lifted(log_decay)[0], F32)


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial: Tensor | None, kind: int, span: int
) -> tuple[Tensor, Tensor]:
    """y and the final state in float32."""
    q, k, v = lifted(q, k, v)
    return canonical.scan(q, k, v, decays(log_decay), initial, reach_of(kind, span))


def backward(
    grad: Tensor, state_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    initial: Tensor | None, state: Tensor, kind: int, span: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, the initial state, and, with decays, of their logarithm, in float32."""
    grad, q, k, v = lifted(grad, q, k, v)
    reach, decay = reach_of(kind, span), decays(log_decay)
    turned, turned_grad = (None if t is None else t.mT for t in (initial, state_grad))
    dq, _ = canonical.scan(grad, v, k, decay, turned, reach, across=True)
    dv, first = canonical.scan(k, q, grad, decay, state_grad, reach, backwards=True)
    dk, _ = canonical.scan(v, grad, q, decay, turned_grad, reach, backwards=True, across=True)
    found = [dq, dk, dv, first]
    if log_decay is not None:
        each = canonical.scan_decay(q, dq, k, dk, state, state_grad, reach)
        found.append(summed_to(each, log_decay.shape))
    return found


def summed_to(x: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of what was broadcast to x's shape: canonical sums in float64 over the dimensions that were."""
    lead = x.dim() - len(shape)
    dims = [d for d in range(x.dim()) if d < lead or (shape[d - lead] == 1 and x.shape[d] != 1)]
    if not dims:
        return x.view(shape)
    if not x.numel():
        return x.new_zeros(shape)
    return canonical.sum_terms("value", dims, x).to(F32).view(shape)


@torch.library.custom_op("vtrain::scan", mutates_args=())
def scan_op(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial: Tensor | None, kind: int, span: int
) -> tuple[Tensor, Tensor]:
    """y and the final state."""
    y, state = forward(q, k, v, log_decay, initial, kind, span)
    return y.to(q.dtype), state


@scan_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(v.shape), q.new_empty((*q.shape[:2], q.shape[3], v.shape[3]), dtype=F32)


@torch.library.custom_op("vtrain::scan_backward", mutates_args=())
def scan_backward_op(
    grad: Tensor, state_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    initial: Tensor | None, state: Tensor, kind: int, span: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, the initial state, and the decays' logarithm where there is one."""
    found = backward(grad, state_grad, q, k, v, log_decay, initial, state, kind, span)
    like = (q, k, v, state) if log_decay is None else (q, k, v, state, log_decay)
    return [t.to(x.dtype) for t, x in zip(found, like, strict=True)]


@scan_backward_op.register_fake
def _(
    grad: Tensor, state_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *rest: Any
) -> list[Tensor]:
    found = [q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), torch.empty_like(rest[1])]
    return found if log_decay is None else [*found, log_decay.new_empty(log_decay.shape)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.order = inputs[5:]
    ctx.set_materialize_grads(False)


def _back(ctx: Any, grad: Tensor | None, state_grad: Tensor | None) -> tuple[Any, ...]:
    q, k, v, log_decay, initial, state = ctx.saved_tensors
    grad = torch.zeros_like(v) if grad is None else grad
    found = torch.ops.vtrain.scan_backward(grad, state_grad, q, k, v, log_decay, initial, state, *ctx.order)
    first = None if initial is None else found[3]
    return (*found[:3], None if log_decay is None else found[4], first, None, None)


scan_op.register_autograd(_back, setup_context=_keep)
