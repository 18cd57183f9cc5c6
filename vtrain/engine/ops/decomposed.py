"""Operations that PyTorch's own decompositions reduce to others of the table (numerics §2, class 4)."""

from __future__ import annotations

from vtrain.engine.optable import decompose

decompose(
    """
    huber_loss.default huber_loss_backward.default binary_cross_entropy.default binary_cross_entropy_backward.default
    soft_margin_loss.default soft_margin_loss_backward.default multi_margin_loss.default
    xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other logaddexp.default std_mean.correction nan_to_num.default
    celu.default softshrink.default hardshrink.default _prelu_kernel.default _prelu_kernel_backward.default
    _unsafe_masked_index.default _unsafe_masked_index_put_accumulate.default linalg_cross.default addr.default
    trace.default sinc.default _weight_norm_interface.default
    """.split()
)
