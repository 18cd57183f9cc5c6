"""Cross entropy over a large vocabulary, without its matrix of logits (numerics §3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.shared import DTYPES, F32, Tensor, lifted

CHUNK = 1 << 22  # logits that are in memory at once: 16 MiB


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """-log softmax(x weight^T)[target] of each row, the bits of a linear layer, log-softmax and a look-up in sequence.

    Products are chains, as in ``attention``; log-softmax is the canonical one. Logits are computed for some rows at a
    time, and again for the gradients: by rows for x's, by columns for weight's, whose chains go over all rows. So it
    takes five products in place of three, and memory for one chunk.

    Args:
        x: ``(rows, d)``; float32, bfloat16 or float16, computed in float32.
        weight: ``(vocabulary, d)``, of any of these dtypes.
        target: ``(rows,)``, int64.
        ignore_index: rows with this target give 0, and no gradient.

    Returns:
        ``(rows,)``, float32: losses to be averaged.

    Raises:
        OperandError: shapes or dtypes that don't fit, or a target outside; names them.
    """
    for name, t in (("x", x), ("weight", weight)):
        if t.dtype not in DTYPES or t.dim() != 2:
            shape = f"{t.dtype} {list(t.shape)}"
            raise OperandError(
                f"linear_cross_entropy: {name} is {shape}; want matrices of float32, bfloat16 or float16"
            )
    if x.shape[1] != weight.shape[1] or target.shape != x.shape[:1] or target.dtype is not torch.int64:
        shapes = f"x is {list(x.shape)}, weight {list(weight.shape)}, target {target.dtype} {list(target.shape)}"
        raise OperandError(f"linear_cross_entropy: {shapes}, which don't fit")
    counts = target != ignore_index
    inside = torch.where(counts, target, torch.zeros((), dtype=target.dtype, device=target.device))
    if bool(((inside < 0) | (inside >= max(1, weight.shape[0]))).any()) or (weight.shape[0] == 0 and target.numel()):
        raise OperandError(f"linear_cross_entropy: a target outside of 0 to {weight.shape[0] - 1}")
    losses = torch.ops.vtrain.linear_cross_entropy(x, weight, inside)[0]
    return torch.where(counts, losses, torch.zeros((), device=losses.device))


def _chunks(count: int, width: int) -> Iterator[slice]:
    each = max(1, CHUNK // max(1, width))
    for at in range(0, count, each):
        yield slice(at, min(count, at + each))


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return canonical.product(x.unsqueeze(0), weight.mT.unsqueeze(0))[0]


def forward(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and each row's largest logit and logarithm of its sum: float32 ``(rows,)``."""
    x, weight = lifted(x, weight)
    found = [torch.empty(x.shape[0], dtype=F32, device=x.device) for _ in range(3)]
    for rows in _chunks(x.shape[0], weight.shape[0]):
        logits = _logits(x[rows], weight)
        top = logits.amax(1).add_(0.0)
        shifted = logits.sub_(top.unsqueeze(1))
        total = canonical.sum_terms("value", [1], canonical.function("exp", shifted, F32)).to(F32)
        shift = canonical.function("log", total, F32)
        picked = shifted.gather(1, target[rows].unsqueeze(1))[:, 0]
        for out, value in zip(found, (-(picked - shift), top, shift), strict=True):
            out[rows] = value
    return found[0], found[1], found[2]


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, target: Tensor, top: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight in float32: those of logits are -grad [at target] + softmax * grad."""
    x, weight = lifted(x, weight)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)

    def slopes(rows: slice, columns: slice) -> Tensor:
        y = _logits(x[rows], weight[columns]).sub_(top[rows].unsqueeze(1)).sub_(shift[rows].unsqueeze(1))
        back = canonical.function("exp", y, F32).mul_(-grad[rows].unsqueeze(1))
        at = torch.arange(columns.start, columns.stop, device=x.device)
        here = target[rows].unsqueeze(1) == at
        given = torch.where(here, -grad[rows].unsqueeze(1), torch.zeros((), device=x.device))
        return given.sub_(back)

    everything = slice(0, weight.shape[0])
    for rows in _chunks(x.shape[0], weight.shape[0]):
        dx[rows] = canonical.product(slopes(rows, everything).unsqueeze(0), weight.unsqueeze(0))[0]
    for columns in _chunks(weight.shape[0], x.shape[0]):
        dw[columns] = canonical.product(slopes(slice(0, x.shape[0]), columns).mT.unsqueeze(0), x.unsqueeze(0))[0]
    return dx, dw


@torch.library.custom_op("vtrain::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_op(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, largest logits, logarithms of sums."""
    return forward(x, weight, target)


@linear_cross_entropy_op.register_fake
def _(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = [x.new_empty(x.shape[:1], dtype=F32) for _ in range(3)]
    return found[0], found[1], found[2]


@torch.library.custom_op("vtrain::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, target: Tensor, top: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    dx, dw = backward(grad, x, weight, target, top, shift)
    return dx.to(x.dtype), dw.to(weight.dtype)


@linear_cross_entropy_backward_op.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _back(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    found = torch.ops.vtrain.linear_cross_entropy_backward(grad, *ctx.saved_tensors)
    return (*cast(tuple[Tensor, Tensor], found), None)


linear_cross_entropy_op.register_autograd(_back, setup_context=_keep)
