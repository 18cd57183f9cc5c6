"""Hard operands for every entry of classes 1 and 2, and digests of what the engine makes of them.

Run as a script it prints digests as JSON, for ``test_exact_entries.py`` to compare between processes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vtrain.engine.listener import Plain
from vtrain.engine.optable import OpClass
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy

Tensor = torch.Tensor
Args = tuple[Any, ...]
INF, NAN = float("inf"), float("nan")
# signed zeros, NaNs, infinities, halves, subnormals, binade edges, numbers that other types can't hold
HARD = [
    0.0, -0.0, NAN, -NAN, INF, -INF, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 1.0, -1.0, 3.0, -3.0, 7.0, -7.0, 0.1, -0.1, 1 / 3,
    2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-133, 1e-38, 1e38, 3e38, -3e38, 2.0**-24, 16777217.0, 8388607.5, 65504.0,
    1e10, -1e10, 255.0, 256.0, 6.0, 0.0, -0.0,
]  # fmt: skip
# the last ones in float64: subnormals, edges of its range, a tie of float32, numbers next to 1
WIDE = [2.0**-1074, -(2.0**-1022), 1.7e308, 1 + 2.0**-24, 1 + 2.0**-52, 1 - 2.0**-53]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DOUBLE = torch.float64  # in which single operations are covered
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
SHAPES = {1: (1, 1), 7: (7, 1), 33: (3, 11), 1003: (17, 59), 65564: (148, 443)}  # the last one is split between threads
LAYOUTS = ("contiguous", "unaligned", "strided", "transposed")
EXACT = (OpClass.EXACT, OpClass.ROUNDED)


def _laid_out(values: Tensor, shape: tuple[int, int], layout: str) -> Tensor:
    rows, columns = shape
    if layout == "unaligned":
        return torch.cat([values[:1], values.reshape(-1)])[1:].view(shape)
    if layout == "strided":
        wide = values.new_zeros(rows, 2 * columns)
        wide[:, ::2] = values.view(shape)
        return wide[:, ::2]
    if layout == "transposed":
        return values.view(shape).t().contiguous().t()
    return values.view(shape)


class Kit:
    """Operands of one type, size and layout.

    Attributes:
        x, y: (rows, columns); every pair of hard values meets, if there is room.
        i: int64, repeated indices below ``rows``; ``w``: the same of x's shape, below ``columns``.
        mask: bool, x's shape.
        image: (1, 4, h, w) of x's values; empty where there are too few.
    """

    def __init__(self, dtype: torch.dtype, n: int, layout: str) -> None:
        at = torch.arange(n)
        first, second = at % len(HARD), (at * 7 + at // len(HARD)) % len(HARD)
        if dtype.is_floating_point:
            wide = torch.tensor([*HARD[:-6], *WIDE], dtype=torch.float64)
            hard = torch.tensor(HARD, dtype=torch.float64).to(torch.float32)
            hard[3] = torch.tensor(-0x2D5A5B, dtype=torch.int32).view(torch.float32)  # another NaN
            made = wide if dtype is DOUBLE else hard.to(dtype)
            pair = made[first], made[second]
        else:
            whole = torch.tensor([0, 1, -1, 2, -2, 3, 7, -7, 127, -128, 255, 32767, 2**31 - 1, -(2**31), 2**63 - 1,
                                  -(2**63), 2**24 + 1, 2**53 + 1, 63, 64, 8, 31, 32, -3])  # fmt: skip
            pair = whole.to(dtype)[first % len(whole)], whole.to(dtype)[second % len(whole)]
        self.dtype, self.n, self.shape = dtype, n, SHAPES[n]
        self.x, self.y = (_laid_out(v, self.shape, layout) for v in pair)
        rows, columns = self.shape
        self.i = torch.arange(2 * rows) * 7919 % rows
        self.w = _laid_out((at * 2654435761 % 2**20) % columns, self.shape, layout)
        self.mask = _laid_out(at * 40503 % 7 < 3, self.shape, layout)
        side = int((n // 4) ** 0.5) // 2 * 2
        self.image = self.x.reshape(-1)[: 4 * side * side].view(1, 4, side, side)

    @property
    def zeros(self) -> tuple[Tensor, Tensor]:
        """Zeros of either sign, each meeting each, of x's shape and type."""
        first = torch.arange(self.n).view(self.shape)
        return tuple(torch.where(odd, -0.0, 0.0).to(self.dtype) for odd in (first % 3 == 0, first % 5 < 3))  # type: ignore

    @property
    def v(self) -> Tensor:
        """x as a vector."""
        return self.x.reshape(-1)

    @property
    def clean(self) -> Tensor:
        """x without NaN, as a vector."""
        return self.v[self.v == self.v]

    def new(self) -> Tensor:
        """A copy of x, to be written to, of x's layout."""
        return self.x.clone()


def _every(names: str, *makes: Callable[[Kit], Args | None]) -> dict[str, list[Callable[[Kit], Args | None]]]:
    return {name: list(makes) for name in names.split()}


def _boundaries(k: Kit) -> Tensor:
    return k.clean[:40].sort().values


Samples = dict[str, list[Callable[[Kit], Args | None]]]
NUMBERS = (0.3, -3.0, 0.0, 7)
NO_TENSORS = ("profiler",)  # entries of operations that compute nothing


def _with_numbers(*numbers: float) -> list[Callable[[Kit], Args | None]]:
    return [functools.partial(lambda number, k: (k.x, number), number) for number in numbers]


MOVES: Samples = {
    **_every("alias.default detach.default detach_.default lift.default lift_fresh.default lift_fresh_copy.default "
             "clone.default positive.default", lambda k: (k.new(),)),
    **_every("view.default _unsafe_view.default reshape.default", lambda k: (k.v, list(reversed(k.shape)))),
    "view.dtype": [lambda k: (k.v, {2: torch.int16, 4: torch.int32}.get(k.v.element_size(), k.dtype))],
    **_every("t.default t_.default", lambda k: (k.x[:],)),
    **_every("transpose.int transpose_.default", lambda k: (k.x[None], 0, 2)),
    "permute.default": [lambda k: (k.x[None], [2, 0, 1])],
    "expand.default": [lambda k: (k.x[None], [3, *k.shape])],
    "slice.Tensor": [lambda k: (k.x, 0, 0, 5, 2)],
    "select.int": [lambda k: (k.x, 0, -1)],
    **_every("squeeze.default squeeze_.default", lambda k: (k.x[:, None],)),
    **_every("squeeze.dim squeeze_.dim", lambda k: (k.x[:, None], 1)),
    "squeeze.dims": [lambda k: (k.x[:, None], [1])],
    **_every("unsqueeze.default unsqueeze_.default", lambda k: (k.x.view_as(k.x), 1)),
    **_every("split.Tensor unsafe_split.Tensor unsafe_chunk.default", lambda k: (k.x, 2)),
    **_every("split_with_sizes.default unsafe_split_with_sizes.default", lambda k: (k.x, [k.shape[0] - 1, 1])),
    "unbind.int": [lambda k: (k.x[:5],)],
    **_every("as_strided.default as_strided_.default", lambda k: (k.v, [k.n // 2 + 1], [1])),
    **_every("diagonal.default diagonal_copy.default", lambda k: (k.x,)),
    **_every("unfold.default unfold_copy.default", lambda k: (k.x, 0, 1, 1)),
    "_reshape_alias.default": [lambda k: (k.v, [k.n], [1])],
    **_every("fill.Scalar fill_.Scalar", lambda k: (k.new(), 0.1), lambda k: (k.new(), 1)),
    **_every("fill.Tensor fill_.Tensor", lambda k: (k.new(), torch.tensor(0.1, dtype=torch.float64)),
             lambda k: (k.new(), torch.tensor(1e20))),
    **_every("zero.default zero_.default", lambda k: (k.new(),)),
    "resize_.default": [lambda k: (k.v.clone(), [k.n + 5000])],
    "set_.source_Storage": [lambda k: (torch.empty(0, dtype=k.dtype), k.v.clone().untyped_storage())],
    "set_.source_Storage_storage_offset": [lambda k: (torch.empty(0, dtype=k.dtype), k.v.clone().untyped_storage(), 0,
                                                      [(k.n + 1) // 2], [2])],
    "set_.default": [lambda k: (k.new(),)],
    "diag_embed.default": [lambda k: (k.x[:7, :7],)],
    "rot90.default": [lambda k: (k.x, 1, [0, 1]), lambda k: (k.x, 2, [1, 0])],
    "_pack_padded_sequence.default": [lambda k: (k.x, k.w[0].clamp(min=1).sort(descending=True).values[: k.shape[1]]
                                                 .clamp(max=k.shape[0]), False)],
    "masked_scatter_backward.default": [lambda k: (k.x, k.mask, [k.n + 3])],
    "set_.source_Tensor": [lambda k: (torch.empty(0, dtype=k.dtype), k.x)],
    **_every("tril.default triu.default", lambda k: (k.x,)),
    "copy_.default": [lambda k: (k.new(), k.y), lambda k: (torch.zeros(k.shape), k.y),
                      lambda k: (torch.zeros(k.shape, dtype=torch.bfloat16), k.y)],
    "where.self": [lambda k: (k.mask, k.x, k.y), lambda k: (k.mask, k.x, torch.tensor(0.3))],
    "masked_fill.Scalar": [lambda k: (k.x, k.mask, 0.0), lambda k: (k.x, k.mask, -INF)],
    "masked_fill.Tensor": [lambda k: (k.x, k.mask, torch.tensor(0.1, dtype=torch.float64))],
    "masked_select.default": [lambda k: (k.x, k.mask)],
    "masked_scatter.default": [lambda k: (k.x, k.mask, k.y)],
    "gather.default": [lambda k: (k.x, 1, k.w)],
    "index.Tensor": [lambda k: (k.x, [k.i]), lambda k: (k.x, [k.mask])],
    "_unsafe_index.Tensor": [lambda k: (k.x, [k.i])],
    "index_select.default": [lambda k: (k.x, 0, k.i)],
    "take.default": [lambda k: (k.x, k.i)],
    **_every("cat.default stack.default", lambda k: ([k.x, k.y],), lambda k: ([k.x, torch.ones(k.shape)], 1)),
    "constant_pad_nd.default": [lambda k: (k.x, [1, 2], 0.5)],
    "flip.default": [lambda k: (k.x, [0, 1])],
    "roll.default": [lambda k: (k.x, [3], [0])],
    "repeat.default": [lambda k: (k.x, [2, 1])],
    "repeat_interleave.Tensor": [lambda k: (k.i,)],
    "repeat_interleave.self_int": [lambda k: (k.x, 2, 0)],
    "embedding.default": [lambda k: (k.x, k.i)],
    "scatter.value": [lambda k: (k.x, 1, k.w, 1)],
    "slice_backward.default": [lambda k: (k.x, [k.shape[0] + 3, k.shape[1]], 0, 3, k.shape[0] + 3, 1)],
    "select_backward.default": [lambda k: (k.v, [3, k.n], 0, 1)],
    "diagonal_backward.default": [lambda k: (k.x.diagonal().clone(), list(k.shape), 0, 0, 1)],
    "slice_scatter.default": [lambda k: (k.x, k.y[:1], 0, 0, 1),
                              lambda k: (k.x, torch.full((1, k.shape[1]), 0.1), 0, 0, 1)],
    "select_scatter.default": [lambda k: (k.x, k.y[0], 0, 0), lambda k: (k.x, torch.full((k.shape[1],), 1e20), 0, 0)],
    "index_fill.int_Scalar": [lambda k: (k.x, 0, k.i, 1)],
    "index_fill.int_Tensor": [lambda k: (k.x, 0, k.i, torch.tensor(1.0))],
    **_every("pixel_unshuffle.default", lambda k: (k.image, 2)),
    **_every("pixel_shuffle.default channel_shuffle.default", lambda k: (k.image, 2)),
    "im2col.default": [lambda k: (k.image, [2, 2], [1, 1], [1, 1], [1, 1])],
    **_every("reflection_pad1d.default replication_pad1d.default", lambda k: (k.image[0], [1, 2])),
    **_every("reflection_pad2d.default replication_pad2d.default", lambda k: (k.image, [1, 2, 0, 1])),
    **_every("upsample_nearest1d.default _upsample_nearest_exact1d.default", lambda k: (k.image[0], [13])),
    **_every("upsample_nearest2d.default _upsample_nearest_exact2d.default", lambda k: (k.image, [9, 13])),
    **_every("upsample_nearest3d.default _upsample_nearest_exact3d.default", lambda k: (k.image[None], [6, 9, 13])),
    **_every("upsample_nearest1d.vec _upsample_nearest_exact1d.vec", lambda k: (k.image[0], None, [1.7])),
    **_every("upsample_nearest2d.vec _upsample_nearest_exact2d.vec", lambda k: (k.image, None, [1.7, 2.0])),
    **_every("upsample_nearest3d.vec _upsample_nearest_exact3d.vec", lambda k: (k.image[None], None, [1.0, 1.7, 2.0])),
    **_every("reflection_pad3d.default replication_pad3d.default", lambda k: (k.image[None], [1, 2, 0, 1, 1, 0])),
    "adaptive_max_pool3d.default": [lambda k: (k.image[None], [2, 3, 2])],
    **_every("max_pool2d_with_indices.default", lambda k: (k.image, [3, 3], [2, 2], [1, 1])),
    "max_pool3d_with_indices.default": [lambda k: (k.image, [2, 3, 3], [1, 2, 2], [0, 1, 1])],
    "adaptive_max_pool2d.default": [lambda k: (k.image, [3, 2])],
}  # fmt: skip

NEW: Samples = {
    **_every("empty.memory_format zeros.default ones.default", lambda k: ([k.n + 4000], {"dtype": k.dtype})),
    "empty_permuted.default": [lambda k: ([k.n, 2], [1, 0], {"dtype": k.dtype})],
    **_every("empty_like.default zeros_like.default ones_like.default", lambda k: (k.x,)),
    **_every("new_empty.default new_zeros.default new_ones.default", lambda k: (k.x, [k.n + 4000])),
    "empty_strided.default": [lambda k: ([k.n], [3], {"dtype": k.dtype})],
    "new_empty_strided.default": [lambda k: (k.x, [k.n], [3])],
    "full.default": [lambda k: ([k.n], 0.1, {"dtype": k.dtype})],
    "full_like.default": [lambda k: (k.x, 0.1)],
    "new_full.default": [lambda k: (k.x, [k.n], 0.1)],
    "scalar_tensor.default": [lambda k: (0.1, {"dtype": k.dtype})],
    "eye.default": [lambda k: (k.shape[0], {"dtype": k.dtype})],
    "eye.m": [lambda k: (*k.shape, {"dtype": k.dtype})],
    **_every("tril_indices.default triu_indices.default", lambda k: (k.shape[0], 5)),
}  # fmt: skip

SHIFTED = "bitwise_left_shift.Scalar_Tensor bitwise_right_shift.Scalar_Tensor"
CHOICES: Samples = {
    **_every("_is_all_true.default _is_any_true.default", lambda k: (k.mask,), lambda k: (k.mask & False,)),
    **_every("is_set_to.default _has_same_storage_numel.default", lambda k: (k.x, k.y)),
    "count_nonzero.dim_IntList": [lambda k: (k.x, [0])],
    "nonzero_static.default": [lambda k: (k.x, {"size": k.n + 2, "fill_value": -1})],
    **_every("bitwise_and.Scalar_Tensor bitwise_or.Scalar_Tensor bitwise_xor.Scalar_Tensor", lambda k: (5, k.x)),
    **_every(SHIFTED, lambda k: (5, k.x)),
    **_every("__lshift__.Tensor __rshift__.Tensor", lambda k: (k.x, k.y)),
    **_every("__ilshift__.Tensor __irshift__.Tensor", lambda k: (k.new(), k.y)),
    **_every("__ilshift__.Scalar __irshift__.Scalar", lambda k: (k.new(), 3)),
    **_every("gcd.default lcm.default heaviside.default copysign.Tensor fmax.default fmin.default nextafter.default",
             lambda k: (k.x, k.y), lambda k: k.zeros),
    "copysign.Scalar": [lambda k: (k.x, -0.0), lambda k: (k.x, -3)],
    **_every("frac.default signbit.default frexp.Tensor median.default nanmedian.default", lambda k: (k.x,)),
    **_every("median.dim nanmedian.dim mode.default", lambda k: (k.x, 0), lambda k: (k.x, 1, True),
             lambda k: (k.zeros[0], 1)),
    "kthvalue.default": [lambda k: (k.x, min(3, k.shape[1])), lambda k: (k.zeros[0], 1, 0)],
    **_every("cummax.default cummin.default", lambda k: (k.x, 0), lambda k: (k.x, 1), lambda k: (k.zeros[0], 0)),
    "searchsorted.Scalar": [lambda k: (_boundaries(k), 0.1), lambda k: (_boundaries(k), 1)],
    "bucketize.Scalar": [lambda k: (0.1, _boundaries(k)), lambda k: (1, _boundaries(k))],
    **_every("_assert_async.default", lambda k: (torch.ones(1, dtype=k.dtype),)),
    "_assert_async.msg": [lambda k: (torch.ones(1, dtype=k.dtype), "text")],
    "_functional_assert_async.msg": [lambda k: (torch.ones(1, dtype=k.dtype), "text", k.x)],
    "_assert_scalar.default": [lambda k: (True, "text")],
    "_assert_tensor_metadata.default": [lambda k: (k.x,)],
    "_linalg_check_errors.default": [lambda k: (torch.zeros(3, dtype=torch.int32), "text", {"is_matrix": False})],
    **_every("max.default min.default argmax.default argmin.default aminmax.default _unique2.default any.default "
             "all.default nonzero.default count_nonzero.default", lambda k: (k.x,), lambda k: (k.clean,),
             lambda k: k.zeros[:1]),
    **_every("max.dim min.dim", lambda k: (k.x, 0), lambda k: (k.x, 1)),
    **_every("amax.default amin.default", lambda k: (k.x, [0]), lambda k: (k.x, [1]), lambda k: (k.x, [0, 1]),
             lambda k: (k.clean, [0]), lambda k: (k.zeros[0], [1])),
    **_every("any.dim all.dim", lambda k: (k.x, 0), lambda k: (k.x, 1)),
    **_every("any.dims all.dims", lambda k: (k.x, [0, 1])),
    **_every("maximum.default minimum.default", lambda k: (k.x, k.y), lambda k: k.zeros,
             lambda k: (k.x, torch.tensor(0.3))),
    **_every("relu.default abs.default neg.default sign.default sgn.default floor.default ceil.default round.default "
             "trunc.default isnan.default isinf.default isfinite.default isposinf.default isneginf.default "
             "logical_not.default bitwise_not.default", lambda k: (k.x,)),
    "threshold.default": [lambda k: (k.x, 0.1, 0.3), lambda k: (k.x, 0, 0)],
    **_every("clamp.default", lambda k: (k.x, -1, 3), lambda k: (k.x, 0.0, 6.0), lambda k: (k.x, None, 0),
             lambda k: (k.x, 0), lambda k: (k.x, 0.1, 0.3)),
    "hardtanh.default": [lambda k: (k.x, -1, 1), lambda k: (k.x, 0, 6)],
    **_every("clamp_min.default clamp_max.default", lambda k: (k.x, 0), lambda k: (k.x, 0.1), lambda k: (k.x, -0.0)),
    "clamp.Tensor": [lambda k: (k.x, k.y, None), lambda k: (k.x, k.y, k.y.flip(0)), lambda k: (k.x, torch.zeros(()))],
    **_every("clamp_min.Tensor clamp_max.Tensor", lambda k: (k.x, k.y), lambda k: k.zeros),
    **_every("threshold_backward.default hardshrink_backward.default softshrink_backward.default",
             lambda k: (k.x, k.y, 0.1), lambda k: (k.x, k.y, 0)),
    "hardtanh_backward.default": [lambda k: (k.x, k.y, -1, 1), lambda k: (k.x, k.y, 0.0, 0.1)],
    **_every("eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor", lambda k: (k.x, k.y),
             lambda k: (k.x, torch.tensor(0.1))),
    **_every("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", *_with_numbers(0.1, 0, NAN)),
    **_every("logical_and.default logical_or.default logical_xor.default equal.default bitwise_and.Tensor "
             "bitwise_or.Tensor bitwise_xor.Tensor bitwise_left_shift.Tensor bitwise_right_shift.Tensor "
             "is_same_size.default", lambda k: (k.x, k.y)),
    **_every("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", *_with_numbers(5)),
    **_every("bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar",
             *_with_numbers(3, 70, -1)),
    **_every("sort.default", lambda k: (k.x, 0), lambda k: (k.x, 1, True)),
    "sort.stable": [lambda k: (k.v, {"stable": False})],
    "topk.default": [lambda k: (k.v, min(5, k.n))],
    "searchsorted.Tensor": [lambda k: (_boundaries(k), k.x)],
    "bucketize.Tensor": [lambda k: (k.x, _boundaries(k))],
    "isin.Tensor_Tensor": [lambda k: (k.x, k.y[:1]), lambda k: (k.x, k.y)],
    "_unique2.default": [lambda k: (k.x, True, True, True), lambda k: (k.x, False, False, True)],
    "unique_dim.default": [lambda k: (k.clean[: k.n // 2 * 2].view(-1, 1), 0, True, True, True)],
    "unique_consecutive.default": [lambda k: (k.clean, True, True)],
    "one_hot.default": [lambda k: (k.i, k.shape[0])],
    "_local_scalar_dense.default": [lambda k: (k.x[0, 0].clone(),), lambda k: (k.v[3 % k.n].clone(),)],
    **_every("is_pinned.default _pin_memory.default", lambda k: (k.x,)),
}  # fmt: skip

WRITES: Samples = {
    "scatter.src": [lambda k: (k.x, 1, k.w, k.y)],
    "index_copy.default": [lambda k: (k.x, 0, k.i[: k.shape[0]], k.y), lambda k: (k.x, 1, k.w[0], k.y)],
    "index_put.default": [lambda k: (k.x, [k.i], torch.cat([k.y, k.x])), lambda k: (k.x, [None, k.w[0]], k.y),
                          lambda k: (k.x, [k.i[:, None] * 0, k.w[:1]], k.y[:1]),
                          lambda k: (k.x, [k.mask], k.y[k.mask])],
}  # fmt: skip
WRITES["_unsafe_index_put.default"] = WRITES["index_put.default"]
WRITES["_index_put_impl_.default"] = [lambda k: (k.new(), [k.i], torch.cat([k.y, k.x]))]

ARITHMETIC: Samples = {
    **_every("mul.Tensor div.Tensor add.Tensor sub.Tensor rsub.Tensor floor_divide.default remainder.Tensor "
             "fmod.Tensor", lambda k: (k.x, k.y), lambda k: (k.x, torch.tensor(0.3)),
             lambda k: (k.x, torch.ones((), dtype=torch.int64))),
    **_every("mul.Scalar div.Scalar add.Scalar sub.Scalar rsub.Scalar floor_divide.Scalar remainder.Scalar "
             "fmod.Scalar", *_with_numbers(*NUMBERS)),
    "remainder.Scalar_Tensor": [lambda k: (0.3, k.x), lambda k: (7, k.x)],
    "div.Tensor_mode": [functools.partial(lambda mode, k: (k.x, k.y, {"rounding_mode": mode}), mode)
                        for mode in ("floor", "trunc", None)],
    "div.Scalar_mode": [functools.partial(lambda mode, k: (k.x, 0.3, {"rounding_mode": mode}), mode)
                        for mode in ("floor", "trunc")],
    "reciprocal.default": [lambda k: (k.x,)],
    "histc.default": [lambda k: (k.clean.clamp(-9, 9), 10, -3, 3)],
    "sqrt.default": [lambda k: (k.x.to(DOUBLE),)],
    "_to_copy.default": [functools.partial(lambda dtype, k: (k.x, {"dtype": dtype}), dtype)
                         for dtype in (*FLOATS, DOUBLE, *WHOLE)]
                        + [lambda k: (k.clean.abs().clamp(max=100), {"dtype": torch.uint8}),
                           lambda k: (k.clean.clamp(-9, 9), {"dtype": torch.int64})],
}  # fmt: skip
SAMPLES: Samples = {**MOVES, **NEW, **CHOICES, **WRITES, **ARITHMETIC}


def resolve(name: str) -> Any:
    """The overload that an entry of the table names."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def plain(value: Any) -> bytes:
    """A result's bits; any NaN is one."""
    with _disable_current_modes():
        return _plain(value)


def _plain(value: Any) -> bytes:
    if isinstance(value, list | tuple):
        return b"[" + b",".join(_plain(v) for v in value) + b"]"
    if not isinstance(value, Tensor):
        return repr(value).encode()
    t = value.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    if t.is_floating_point() and t.element_size() > 1:
        t = torch.where(t.isnan(), NAN, t).view({8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()])
    return f"{value.dtype}{tuple(value.shape)}".encode() + t.view(torch.uint8).numpy().tobytes()


def arguments(make: Callable[[Kit], Args | None], kit: Kit) -> tuple[Args, dict[str, Any]] | None:
    """A sample's arguments, or None where it needs operands of another type or size."""
    try:
        args = make(kit)
    except (RuntimeError, NotImplementedError):
        return None
    if args is None:
        return None
    return (args[:-1], args[-1]) if isinstance(args[-1], dict) else (args, {})


def call(name: str, args: Args, words: dict[str, Any]) -> bytes:
    """The bits of an entry's result; empty if it does not take the arguments. Inside a step."""
    try:
        return plain(resolve(name)(*args, **words))
    except (RuntimeError, NotImplementedError, UnsupportedOperation, ZeroDivisionError):
        return b""


def kits(big: bool) -> Iterator[tuple[str, Kit]]:
    """Operands by name: small ones of every kind, or the large one."""
    for dtype in (*FLOATS, DOUBLE, *WHOLE):
        for n in SHAPES:
            if (n == 65564) != big or (big and dtype not in (torch.float32, torch.bfloat16, DOUBLE, torch.int64)):
                continue
            if n in (1, 33) and not dtype.is_floating_point:
                continue
            for layout in LAYOUTS if n == 1003 and dtype in (torch.float32, torch.bfloat16) else LAYOUTS[:1]:
                yield f"{dtype} {n} {layout}", Kit(dtype, n, layout)


def digests(big: bool) -> dict[str, str]:
    """Digest of each sample's result, by entry, number of the sample and operands; "" if it was refused."""
    session, found = Session(Plain(), Policy(), 0), {}
    for where, kit in kits(big):
        given = {
            f"{name} {i} {where}": arguments(make, kit)
            for name, makes in SAMPLES.items()
            for i, make in enumerate(makes)
        }
        with session.step(1):
            for key, pair in given.items():
                bits = call(f"aten.{key.split()[0]}", *pair) if pair else b""
                found[key] = hashlib.sha256(bits).hexdigest()[:16] if bits else ""
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    result: dict[str, str] = {}
    for size in {"small": [False], "big": [True], "both": [False, True]}[sys.argv[2]]:
        result.update(digests(size))
    json.dump(result, sys.stdout)
