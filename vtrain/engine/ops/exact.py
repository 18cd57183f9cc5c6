"""Classes 1 and 2: operations that run natively (numerics §2)."""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import OpClass, forbid, native, register

# Move or select values; integer, boolean and comparison results. Ties: lowest index.
native(
    OpClass.EXACT,
    """
    view.default _unsafe_view.default view.dtype reshape.default t.default transpose.int permute.default expand.default
    slice.Tensor select.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default split.Tensor
    split_with_sizes.default unsafe_split.Tensor unsafe_split_with_sizes.default unbind.int unsafe_chunk.default
    alias.default detach.default detach_.default as_strided.default as_strided_.default diagonal.default
    diagonal_copy.default unfold.default lift.default lift_fresh.default lift_fresh_copy.default clone.default
    copy_.default transpose_.default t_.default squeeze_.default squeeze_.dim unsqueeze_.default _reshape_alias.default
    empty.memory_format empty_like.default empty_strided.default new_empty.default new_empty_strided.default
    zeros.default zeros_like.default new_zeros.default ones.default ones_like.default new_ones.default full.default
    full_like.default new_full.default scalar_tensor.default eye.default eye.m fill.Scalar fill.Tensor zero.default
    zero_.default fill_.Scalar fill_.Tensor resize_.default set_.source_Tensor
    tril.default triu.default tril_indices.default triu_indices.default where.self where.ScalarOther where.ScalarSelf
    where.Scalar masked_fill.Scalar masked_fill.Tensor masked_select.default gather.default index.Tensor
    _unsafe_index.Tensor index_select.default take.default cat.default stack.default constant_pad_nd.default
    flip.default roll.default repeat.default repeat_interleave.Tensor repeat_interleave.self_int
    embedding.default scatter.src scatter.value slice_backward.default select_backward.default
    slice_scatter.default select_scatter.default diagonal_backward.default unfold_copy.default index_fill.int_Scalar
    index_fill.int_Tensor
    index_copy.default masked_scatter.default im2col.default pixel_shuffle.default pixel_unshuffle.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default replication_pad1d.default
    replication_pad2d.default replication_pad3d.default channel_shuffle.default
    hardshrink_backward.default softshrink_backward.default
    relu.default threshold.default threshold_backward.default hardtanh.default hardtanh_backward.default
    clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor
    abs.default neg.default sign.default sgn.default positive.default
    max.default min.default max.dim min.dim maximum.default minimum.default amax.default amin.default
    argmax.default argmin.default
    eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor
    ge.Scalar equal.default isnan.default isinf.default isfinite.default isposinf.default isneginf.default
    logical_and.default logical_or.default logical_not.default logical_xor.default
    bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar
    bitwise_not.default bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
    bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar
    any.default any.dim any.dims all.default all.dim all.dims nonzero.default count_nonzero.default
    floor.default ceil.default round.default trunc.default searchsorted.Tensor bucketize.Tensor
    bincount.default _unique2.default unique_dim.default unique_consecutive.default isin.Tensor_Tensor
    one_hot.default _local_scalar_dense.default is_same_size.default is_pinned.default _pin_memory.default
    max_pool2d_with_indices.default max_pool3d_with_indices.default adaptive_max_pool2d.default
    adaptive_max_pool3d.default
    aminmax.default ldexp.Tensor
    """.split(),
)
native(
    OpClass.EXACT,
    ["profiler._record_function_enter_new.default", "profiler._record_function_exit._RecordFunction"],
)

# One IEEE operation an element. remainder, fmod and floor division: exact remainders, then at most one rounding.
native(
    OpClass.ROUNDED,
    """
    mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode floor_divide.default floor_divide.Scalar
    remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar _to_copy.default
    """.split(),
)


@register("sort.default", cls=OpClass.EXACT)
def sort(engine: Engine, x: torch.Tensor, dim: int = -1, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices in order; of equal ones the lowest index first (numerics §2), as no library promises."""
    found = torch.sort(x, stable=True, dim=dim, descending=descending)
    return found.values, found.indices


@register("sort.stable", cls=OpClass.EXACT)
def sort_stable(
    engine: Engine, x: torch.Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``sort``."""
    return sort(engine, x, dim, descending)


@register("topk.default", cls=OpClass.EXACT)
def topk(
    engine: Engine, x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first k in order; of equal ones the lowest index first."""
    values, indices = sort(engine, x, dim, largest)
    if not x.dim():
        return values, indices
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


@register("histc.default", cls=OpClass.ROUNDED)
def histc(engine: Engine, x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    """Counts of floor((x - min) * bins / (max - min)) in float64 IEEE operations; max is in the last bin."""
    wide = x.to(torch.float64).reshape(-1)
    low, high = (float(min), float(max)) if min != max else (float(wide.min()), float(wide.max()))
    if low == high:
        low, high = low - 1, high + 1
    inside = wide[(wide >= low) & (wide <= high)]
    span = torch.full((), high - low, dtype=torch.float64, device=x.device)
    position = torch.div((inside - low) * bins, span).floor().clamp_max_(bins - 1).to(torch.int64)
    return torch.bincount(position, minlength=bins).to(x.dtype)


forbid(
    "it hides a sum inside one fused operation; disable the fused layer (the session does so for torch's own)",
    """
    mkldnn_rnn_layer.default _transformer_encoder_layer_fwd.default _native_multi_head_attention.default
    _scaled_dot_product_flash_attention_for_cpu.default _scaled_dot_product_flash_attention.default
    _scaled_dot_product_efficient_attention.default _scaled_dot_product_cudnn_attention.default
    mkldnn_linear.default mkldnn_convolution.default
    """.split(),
)


def _plain(*args: object, alpha: float = 1) -> bool:
    return alpha == 1 and (len(args) < 3 or args[2] == 1)


def _scaled(engine: Engine, x: torch.Tensor | float, alpha: float) -> torch.Tensor | float:
    """alpha * x, rounded to float32: a multiply-add must not be fused (numerics §2)."""
    return torch.mul(engine.lift(x), alpha) if isinstance(x, torch.Tensor) else x * alpha


def _lift(engine: Engine, x: torch.Tensor | float) -> torch.Tensor | float:
    return engine.lift(x) if isinstance(x, torch.Tensor) else x


def _add_in_place(engine: Engine, x: torch.Tensor, other: torch.Tensor | float, alpha: float = 1) -> None:
    """x += alpha * other as an optimizer has it: the product goes through scratch memory."""
    if not isinstance(other, torch.Tensor) or x.dtype is not torch.float32 or engine.restricted:
        x.copy_(add(engine, x, other, alpha))
        return
    wide = engine.lift(other)
    x.add_(torch.mul(wide, alpha, out=engine.workspace.get("scaled", wide.shape, torch.float32, wide.device)))


@register("add.Tensor", "add.Scalar", cls=OpClass.ROUNDED, native_when=_plain, inplace=_add_in_place)
def add(engine: Engine, x: torch.Tensor, other: torch.Tensor | float, alpha: float = 1) -> torch.Tensor:
    """x + alpha * other: the product is rounded before the sum."""
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:
        return torch.add(x, other * alpha)
    return engine.finish(torch.add(engine.lift(x), _scaled(engine, other, alpha)), dtype)


@register("sub.Tensor", "sub.Scalar", cls=OpClass.ROUNDED, native_when=_plain)
def sub(engine: Engine, x: torch.Tensor, other: torch.Tensor | float, alpha: float = 1) -> torch.Tensor:
    """x - alpha * other: the product is rounded before the difference."""
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:
        return torch.sub(x, other * alpha)
    return engine.finish(torch.sub(engine.lift(x), _scaled(engine, other, alpha)), dtype)


@register("rsub.Tensor", "rsub.Scalar", cls=OpClass.ROUNDED, native_when=_plain)
def rsub(engine: Engine, x: torch.Tensor, other: torch.Tensor | float, alpha: float = 1) -> torch.Tensor:
    """other - alpha * x: the product is rounded before the difference."""
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:
        return torch.rsub(x * alpha, other)
    return engine.finish(torch.rsub(_scaled(engine, x, alpha), _lift(engine, other)), dtype)  # type: ignore[arg-type]


@register("reciprocal.default", cls=OpClass.ROUNDED)
def reciprocal(engine: Engine, x: torch.Tensor) -> torch.Tensor:
    """1 / x as one division; vector units also have approximate reciprocals."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    x = engine.lift(x)
    return engine.finish(torch.div(torch.ones((), dtype=x.dtype, device=x.device), x), dtype)
