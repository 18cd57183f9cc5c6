"""Class 1: operations that run natively, whatever the arguments (numerics §2)."""

from __future__ import annotations

from vtrain.engine.optable import OpClass, forbid, native

# Move or select values; integer, boolean and comparison results. Ties: lowest index.
native(
    OpClass.EXACT,
    """
    view.default _unsafe_view.default reshape.default t.default transpose.int permute.default expand.default
    slice.Tensor select.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default split.Tensor
    split_with_sizes.default unsafe_split.Tensor unsafe_split_with_sizes.default unbind.int unsafe_chunk.default
    alias.default detach.default detach_.default diagonal.default
    diagonal_copy.default lift.default lift_fresh.default lift_fresh_copy.default clone.default
    transpose_.default t_.default squeeze_.default squeeze_.dim unsqueeze_.default _reshape_alias.default
    zeros.default zeros_like.default new_zeros.default ones.default ones_like.default new_ones.default full.default
    full_like.default new_full.default scalar_tensor.default eye.default eye.m fill.Scalar zero.default
    zero_.default fill_.Scalar set_.source_Tensor set_.source_Storage set_.default
    diag_embed.default rot90.default _pack_padded_sequence.default masked_scatter_backward.default
    tril.default triu.default tril_indices.default triu_indices.default
    masked_fill.Scalar masked_select.default gather.default index.Tensor
    _unsafe_index.Tensor index_select.default take.default constant_pad_nd.default
    flip.default roll.default repeat.default repeat_interleave.self_int
    embedding.default scatter.value slice_backward.default select_backward.default
    diagonal_backward.default unfold_copy.default index_fill.int_Scalar
    masked_scatter.default im2col.default pixel_shuffle.default pixel_unshuffle.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default replication_pad1d.default
    replication_pad2d.default replication_pad3d.default channel_shuffle.default
    abs.default neg.default sign.default sgn.default positive.default
    max.dim min.dim
    argmax.default argmin.default
    equal.default isnan.default isinf.default isfinite.default isposinf.default isneginf.default
    logical_and.default logical_or.default logical_not.default logical_xor.default
    bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar
    bitwise_not.default bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
    bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar
    any.default any.dim any.dims all.default all.dim all.dims nonzero.default count_nonzero.default
    floor.default ceil.default round.default trunc.default
    isin.Tensor_Tensor
    one_hot.default is_same_size.default is_set_to.default _has_same_storage_numel.default
    _is_all_true.default _is_any_true.default count_nonzero.dim_IntList nonzero_static.default
    bitwise_and.Scalar_Tensor bitwise_or.Scalar_Tensor bitwise_xor.Scalar_Tensor bitwise_left_shift.Scalar_Tensor
    bitwise_right_shift.Scalar_Tensor __lshift__.Tensor __rshift__.Tensor __ilshift__.Scalar __ilshift__.Tensor
    __irshift__.Scalar __irshift__.Tensor heaviside.default frac.default
    max_pool2d_with_indices.default max_pool3d_with_indices.default adaptive_max_pool2d.default
    adaptive_max_pool3d.default
    """.split(),
)
native(
    OpClass.EXACT,
    """
    _assert_async.default _assert_async.msg _functional_assert_async.msg _assert_scalar.default
    _assert_tensor_metadata.default _linalg_check_errors.default
    """.split(),
)
native(
    OpClass.EXACT,
    ["profiler._record_function_enter_new.default", "profiler._record_function_exit._RecordFunction"],
)

forbid(
    "it hides a sum inside one fused operation; disable the fused layer (the session does so for torch's own)",
    """
    mkldnn_rnn_layer.default _transformer_encoder_layer_fwd.default _native_multi_head_attention.default
    _scaled_dot_product_flash_attention_for_cpu.default _scaled_dot_product_flash_attention.default
    _scaled_dot_product_efficient_attention.default _scaled_dot_product_cudnn_attention.default
    mkldnn_linear.default mkldnn_convolution.default
    """.split(),
)
