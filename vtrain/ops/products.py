"""Products in canonical order under every policy: plain, block-diagonal, and Monarch (numerics §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.shared import DTYPES, Tensor, lifted


def chain_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b: each element one chain of fused multiply-adds over ascending terms in float32, also in its gradients.

    Args:
        a: ``(batch, m, k)``; float32, bfloat16 or float16.
        b: ``(batch, k, n)``, of any of these dtypes; the result has a's.

    Raises:
        OperandError: shapes or dtypes that don't fit; names them.
    """
    for name, t in (("a", a), ("b", b)):
        if t.dtype not in DTYPES or t.dim() != 3:
            raise OperandError(f"chain_product: {name} is {t.dtype} {list(t.shape)}; want (batch, rows, columns)")
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise OperandError(f"chain_product: a is {list(a.shape)} and b {list(b.shape)}, which don't fit")
    return torch.ops.vtrain.chain_product(a, b)


def block_diagonal(x: Tensor, weight: Tensor) -> Tensor:
    """x times a block-diagonal matrix: block i of the result is ``weight[i] x_i``.

    Args:
        x: ``(..., blocks * p)``; float32, bfloat16 or float16.
        weight: ``(blocks, q, p)``.

    Returns:
        ``(..., blocks * q)``.
    """
    if weight.dim() != 3 or x.dim() < 1 or x.shape[-1] != weight.shape[0] * weight.shape[2]:
        shapes = f"x is {list(x.shape)} and weight {list(weight.shape)}"
        raise OperandError(f"block_diagonal: {shapes}; want (..., blocks * p) and (blocks, q, p)")
    blocks, q, p = weight.shape
    rows = x.reshape(-1, blocks, p).transpose(0, 1)
    y = chain_product(rows, weight.mT)
    return y.transpose(0, 1).reshape(*x.shape[:-1], blocks * q)


def monarch(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """x times a Monarch matrix: block-diagonal factors with the permutation between neighbours that mixes their blocks.

    Dao et al., Monarch: expressive structured matrices, arXiv 2204.00595. After each factor but the last, with l blocks
    in the next one, position i of the result goes to i % l * r + i // l, r the next one's columns; after the last,
    block and row are exchanged: row s of block b is position s * l + b. Two square factors of b blocks are a matrix of
    b^2 columns with 2 b^3 weights; p factors of blocks n^(1/p) one of order p.

    Args:
        x: ``(..., n)``; float32, bfloat16 or float16.
        factors: the first one first, each ``(blocks, q, p)``; blocks * p is what the one before gives.

    Returns:
        ``(..., m)``, m the last one's blocks * q.
    """
    if not factors:
        raise OperandError("monarch: no factors, want one or more")
    for i, weight in enumerate(factors):
        if i:
            if x.shape[-1] != weight.shape[0] * weight.shape[-1]:
                shape = list(weight.shape)
                raise OperandError(f"monarch: factor {i} is {shape}, and gets {x.shape[-1]} features; want blocks * p")
            x = x.unflatten(-1, (weight.shape[-1], weight.shape[0])).mT.flatten(-2)
        x = block_diagonal(x, weight)
    blocks, q, _ = factors[-1].shape
    return x.unflatten(-1, (blocks, q)).mT.flatten(-2)


def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and b in float32."""
    grad, a, b = lifted(grad, a, b)
    return canonical.product(grad, b.mT), canonical.product(a.mT, grad)


@torch.library.custom_op("vtrain::chain_product", mutates_args=())
def chain_product_op(a: Tensor, b: Tensor) -> Tensor:
    """a @ b."""
    wide_a, wide_b = lifted(a, b)
    return canonical.product(wide_a, wide_b).to(a.dtype)


@chain_product_op.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))


@torch.library.custom_op("vtrain::chain_product_backward", mutates_args=())
def chain_product_backward_op(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and b."""
    da, db = backward(grad, a, b)
    return da.to(a.dtype), db.to(b.dtype)


@chain_product_backward_op.register_fake
def _(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _back(ctx: Any, grad: Tensor) -> Any:
    if torch.is_grad_enabled():  # create_graph: the same products, which have gradients of their own
        a, b = ctx.saved_tensors
        return chain_product(grad, b.mT), chain_product(a.mT, grad).to(b.dtype)
    return torch.ops.vtrain.chain_product_backward(grad, *ctx.saved_tensors)


chain_product_op.register_autograd(_back, setup_context=_keep)
