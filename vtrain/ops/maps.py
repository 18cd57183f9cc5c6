"""Feature maps of linear attention, made of torch's own operations, each of which has one order."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from vtrain.errors import OperandError
from vtrain.ops.products import chain_product
from vtrain.ops.shared import Tensor, constants


@functools.cache
def _pairs(d: int, device: torch.device) -> Tensor:
    """Places i * d + j of the pairs i <= j, i ascending, then j."""
    with constants():
        i, j = torch.triu_indices(d, d)
        return (i * d + j).to(device)


def taylor_map(x: Tensor, *, symmetric: bool = True) -> Tensor:
    """Features whose inner products are 1 + s + s^2 / 2, s = q.k / sqrt(d): the exponential's series (BASED).

    With u = x d^(-1/4): 1, u_i, and u_i u_j. Arora et al., Simple linear attention language models balance the
    recall-throughput tradeoff, arXiv 2402.18668, have all d^2 pairs times 1 / sqrt(2); the symmetric form has those
    with i <= j, the diagonal times sqrt(1/2): 1 + d + d (d + 1) / 2 features, and the same inner products.

    Args:
        x: ``(..., d)``, floating-point.
        symmetric: which form.

    Returns:
        ``(..., features)`` of x's dtype.
    """
    d = x.shape[-1]
    if d < 1:
        raise OperandError(f"taylor_map: x is {list(x.shape)}; want features in its last dimension")
    u = x * d**-0.25
    pairs = (u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)
    if symmetric:
        where = _pairs(d, x.device)
        on_diagonal = where // d == where % d
        one, half = torch.ones((), device=x.device), torch.full((), math.sqrt(0.5), device=x.device)
        factor = torch.where(on_diagonal, half, one)
        pairs = pairs.index_select(-1, where) * factor.to(x.dtype)
    else:
        pairs = pairs * math.sqrt(0.5)
    return torch.cat([torch.ones_like(u[..., :1]), u, pairs], -1)


def hedgehog_map(x: Tensor, weight: Tensor, *, least: float = 1e-12) -> Tensor:
    """softmax(x W) and softmax(-x W) side by side, each over its features, no smaller than ``least`` (LoLCATs).

    Zhang et al., LoLCATs: on low-rank linearizing of large language models, arXiv 2410.10254: two softmaxes, not one.

    Args:
        x: ``(batch, heads, length, d)``.
        weight: ``(heads, d, features)``.
        least: what smaller features become.

    Returns:
        ``(batch, heads, length, 2 features)``.
    """
    z = _projected("hedgehog_map", x, weight)
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).clamp(min=least)


def relu_map(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(x W + b) (Kasai et al., Finetuning pretrained transformers into RNNs, arXiv 2103.13076: T2R).

    Args:
        x: ``(batch, heads, length, d)``.
        weight: ``(heads, d, features)``.
        bias: ``(heads, features)``.
    """
    z = _projected("relu_map", x, weight)
    return F.relu(z if bias is None else z + bias.unsqueeze(1))


def elu_map(x: Tensor) -> Tensor:
    """elu(x) + 1 (Katharopoulos et al., Transformers are RNNs, arXiv 2006.16236)."""
    return F.elu(x) + 1


def _projected(name: str, x: Tensor, weight: Tensor) -> Tensor:
    if x.dim() != 4 or weight.dim() != 3 or weight.shape[:2] != (x.shape[1], x.shape[3]):
        shapes = f"x is {list(x.shape)} and weight {list(weight.shape)}"
        raise OperandError(f"{name}: {shapes}; want (batch, heads, length, d) and (heads, d, features)")
    batch, heads, length, d = x.shape
    rows = x.transpose(0, 1).reshape(heads, batch * length, d)
    return chain_product(rows, weight).view(heads, batch, length, -1).transpose(0, 1)
