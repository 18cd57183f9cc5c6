"""Softmax attention without its matrix of scores (``reductions/attention.hpp``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, Tensor, checked

BACKWARD = "attention_backward"


@dataclass(frozen=True)
class Dropout:
    """Which weights are dropped: coins of one draw of a Philox stream, word (head, query, key) for each.

    Attributes:
        key, site, step: of the draw, as ``vtrain.random`` names them; the first of the key's two words is its
            lower half.
        threshold: a weight stays where its word is below; up to 2^32.
        kept: what those that stay are multiplied by; a float32 number.
    """

    key: int
    site: int
    step: int
    threshold: int
    kept: float

    @property
    def numbers(self) -> tuple[int, ...]:
        """As kernels take them: 64-bit words as signed integers."""
        return 1, self.threshold, *((n + 2**63) % 2**64 - 2**63 for n in (self.key, self.site, self.step))


MOST_WORDS = 2**34  # of a draw


@dataclass(frozen=True)
class Sight:
    """Which keys a query sees, and how scores are scaled.

    Attributes:
        start: position of the first query.
        offset: position of the first key that is given; sums go by positions.
        causal: no key after the query's own position.
        window: with causal: so many keys, the query's own the last; 0 for all.
        block: with causal: the query's own block of so many positions and the one before; 0 for all.
        q_scale, k_scale: factors of queries and keys; the scores' is their product.
        dropout: of weights.
    """

    start: int = 0
    causal: bool = False
    window: int = 0
    block: int = 0
    q_scale: float = 1.0
    k_scale: float = 1.0
    dropout: Dropout | None = None
    offset: int = 0


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] < 2 else t.contiguous()


def _check(
    name: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    sight: Sight,
) -> None:  # fmt: skip
    checked(name, q, q=q, k=k, v=v, bias=bias)
    checked(name, q, (torch.int64,), padding=padding)
    checked(name, q, (torch.bool, torch.uint8), mask=mask)
    shapes = f"q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        raise OperandError(f"kernel {name}: {shapes}, want (batch, heads, length, width)")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise OperandError(f"kernel {name}: {shapes}, which don't fit")
    if padding is not None and padding.shape != q.shape[:1]:
        raise OperandError(f"kernel {name}: padding is {list(padding.shape)}, want {list(q.shape[:1])}")
    if q.shape[1] % max(1, k.shape[1]) or (q.shape[1] and not k.shape[1]):
        raise OperandError(f"kernel {name}: {q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if min(sight.start, sight.window, sight.block, sight.offset) < 0 or (
        (sight.window or sight.block) and not sight.causal
    ):
        raise OperandError(f"kernel {name}: {sight}; want numbers from 0 on, and a window or block with causal")
    if sight.dropout is not None and q.shape[:3].numel() * k.shape[2] > MOST_WORDS:
        raise OperandError(f"kernel {name}: {shapes}, more weights than the {MOST_WORDS} coins of a draw")
    if sight.window and sight.block:
        raise OperandError(f"kernel {name}: a window and a block; want one")


def _expanded(name: str, what: str, t: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if t is None:
        return None
    try:
        return t.expand(shape)
    except RuntimeError as error:
        raise OperandError(f"kernel {name}: {what} is {list(t.shape)}, want {list(shape)} or less") from error


def _launch(
    name: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    sight: Sight, tensors: tuple[Tensor | None, ...], grad: Tensor | None, part: int,
) -> None:  # fmt: skip
    batch, heads, queries, d = q.shape
    keys, width = k.shape[2], v.shape[3]
    over = bias if bias is not None else mask
    seen = (0, 0, 0, 0) if over is None else over.stride()
    launch.launch(
        name, q, k, v, padding, bias, mask, grad, *tensors, batch, heads, heads // max(1, k.shape[1]), queries, keys,
        d, width,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *((0, 0, 0) if grad is None else grad.stride()[:3]), *seen,
        sight.offset, sight.start, int(sight.causal), sight.window, sight.block, part,
        *((0, 0, 0, 0, 0) if sight.dropout is None else sight.dropout.numbers), float(sight.q_scale),
        float(sight.k_scale), 1.0 if sight.dropout is None else sight.dropout.kept,
    )  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out ``(batch, heads, queries, width)``, and each query's largest score and sum ``(batch, heads, queries)``.

    Args:
        q: ``(batch, heads, queries, d)``.
        k, v: ``(batch, key heads, keys, d)`` and the same of ``width``; query head h reads key head h // group.
        sight: what is seen.
        bias: added to scores, broadcastable to ``(batch, heads, queries, keys)``.
        mask: of bool, the same: False where a key is not seen. One of the two.
        padding: positions that each batch entry begins with and are none, int64 ``(batch,)``: others count from behind.
    """
    _check("attention", q, k, v, bias, mask, padding, sight)
    shape = (*q.shape[:3], k.shape[2])
    bias, mask = _expanded("attention", "bias", bias, shape), _expanded("attention", "mask", mask, shape)
    if bias is not None and mask is not None:
        raise OperandError("kernel attention: a bias and a mask; want one")
    q, k, v, padding = _rows(q), _rows(k), _rows(v), None if padding is None else padding.contiguous()
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=F32, device=q.device)
    top, total = (torch.empty(q.shape[:3], dtype=F32, device=q.device) for _ in range(2))
    if top.numel():
        _launch("attention", q, k, v, bias, mask, padding, sight, (out, top, total, None, None, None, None), None, 0)
    return out, top, total


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, top: Tensor, total: Tensor, sight: Sight, bias: Tensor | None = None,
    mask: Tensor | None = None, padding: Tensor | None = None, parts: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, those of k and v for each query head; and the sums D.

    ``parts``: 0 for all in one go, 1 and 2 for queries and then keys; the bits are the same. By default what is faster.
    """
    _check(BACKWARD, q, k, v, bias, mask, padding, sight)
    checked(BACKWARD, q, grad=grad, top=top, total=total)
    shape = (*q.shape[:3], k.shape[2])
    bias, mask = _expanded(BACKWARD, "bias", bias, shape), _expanded(BACKWARD, "mask", mask, shape)
    if grad.shape != (*q.shape[:3], v.shape[3]) or top.shape != q.shape[:3] or total.shape != q.shape[:3]:
        shapes = [list(t.shape) for t in (grad, top, total)]
        raise OperandError(f"kernel {BACKWARD}: grad, top and total are {shapes}, which don't fit")
    q, k, v, grad = _rows(q), _rows(k), _rows(v), _rows(grad)
    padding = None if padding is None else padding.contiguous()
    per_head = (*q.shape[:2], k.shape[2])
    some = q.shape[:3].numel() * k.shape[2] > 0
    new = torch.empty if some else torch.zeros
    dq, delta = new(q.shape, dtype=F32, device=q.device), new(q.shape[:3], dtype=F32, device=q.device)
    dk, dv = (new((*per_head, n), dtype=F32, device=q.device) for n in (k.shape[3], v.shape[3]))
    for part in parts or ((0,) if q.is_cpu else (1, 2)):
        if some:
            tensors = (None, top.contiguous(), total.contiguous(), delta, dq, dk, dv)
            _launch(BACKWARD, q, k, v, bias, mask, padding, sight, tensors, grad, part)
    return dq, dk, dv, delta
