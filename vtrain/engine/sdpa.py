"""``scaled_dot_product_attention`` inside a step: one canonical operation, where its bits are those of its parts.

Taken apart as torch's math backend has it, it materialises scores for all pairs. ``vtrain.ops.attention`` gives the
same bits as those parts do with canonical products of float32 (``matmul="chain"``), so it stands in their place under
that policy and the default one. It doesn't where a policy names other products for them (``chain64``, ``integer``,
tensor cores, or everything logged), where the mask wants a gradient, or under transforms of ``torch.func``.
"""

from __future__ import annotations

import torch
from torch._C import _are_functorch_transforms_active

from vtrain.engine.active import active_engine
from vtrain.engine.core import Engine
from vtrain.ops.shared import DTYPES
from vtrain.ops.softmax import attention

Tensor = torch.Tensor
aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def fuses(engine: Engine) -> bool:
    """Whether a run's policy has attention as one operation."""
    policy = engine.policy
    return engine.canonical and policy.matmul in ("logged", "chain") and policy.accumulator == "float32"


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """As torch has it: one operation, or torch's composition."""
    engine = active_engine()
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    one = engine is not None and fuses(engine) and 0 <= dropout_p < 1 and not _are_functorch_transforms_active()
    if not one or not _fits(*tensors, causal=is_causal, grouped=enable_gqa):
        return aten.scaled_dot_product_attention.default._op_dk(
            _COMPOSITE, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    q, k, v = (t[(None,) * (4 - t.dim())] for t in (query, key, value))
    out = attention(q, k, v, causal=is_causal, mask=attn_mask, scale=scale, dropout=dropout_p)
    return out.view(out.shape[4 - query.dim() :])


def _fits(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool, grouped: bool
) -> bool:
    dims = query.dim()
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_nested for t in (query, key, value))
    if not plain or not 2 <= dims <= 4 or key.dim() != dims or value.dim() != dims or query.dtype not in DTYPES:
        return False
    alike = {(t.dtype, t.device, t.shape[:-2] if not grouped else t.shape[:-3]) for t in (query, key, value)}
    if len(alike) != 1 or key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1]:
        return False
    if grouped and (dims != 4 or query.shape[1] % max(1, key.shape[1])):
        return False
    if mask is not None and (causal or mask.requires_grad or mask.device != query.device or mask.dim() > dims):
        return False
    known = mask is None or mask.dtype is torch.bool or mask.dtype in DTYPES
    return known and all(t.numel() for t in (query, key, value))
