"""Operations of torch that are taken apart into primitives. Its own samples call them in the tests,
which hold this list up to date (tests/compute/test_opinfo.py)."""

from __future__ import annotations

_NAMES = """
    _adaptive_avg_pool2d.default _adaptive_avg_pool2d_backward.default _adaptive_avg_pool3d.default
    _adaptive_avg_pool3d_backward.default _batch_norm_with_update.default _cdist_backward.default
    _cdist_forward.default _euclidean_dist.default _log_softmax.default _log_softmax_backward_data.default
    _native_batch_norm_legit.default _native_batch_norm_legit.no_stats _prelu_kernel.default
    _prelu_kernel_backward.default _softmax.default _softmax_backward_data.default acosh.default addbmm.default
    addcdiv.default addcmul.default addmv.default addr.default alias_copy.default aminmax.default
    as_strided_copy.default asinh.default atanh.default avg_pool2d.default avg_pool2d_backward.default
    avg_pool3d.default avg_pool3d_backward.default batch_norm_backward.default
    binary_cross_entropy_with_logits.default block_diag.default celu.default clamp_max.Tensor clamp_min.Tensor
    clamp_min.default convolution.default convolution_backward.default cumprod.default deg2rad.default
    diag_embed.default diagonal_backward.default diagonal_copy.default elu.default elu_backward.default
    expand_copy.default fmax.default fmin.default frac.default gelu.default gelu_backward.default glu.default
    glu_backward.default heaviside.default kthvalue.default ldexp.Tensor leaky_relu.default
    leaky_relu_backward.default lerp.Tensor linalg_cross.default linalg_vector_norm.default linspace.default
    log_sigmoid_forward.default logaddexp.default logaddexp2.default logspace.default masked_fill.Scalar
    masked_fill.Tensor masked_scatter.default max_pool2d_with_indices.default
    max_pool2d_with_indices_backward.default median.default median.dim native_batch_norm.default
    native_batch_norm_backward.default native_group_norm.default native_group_norm_backward.default
    native_layer_norm.default native_layer_norm_backward.default nll_loss2d_backward.default
    nll_loss2d_forward.default nll_loss_backward.default nll_loss_forward.default repeat.default silu.default
    silu_backward.default slice_backward.default stack.default std_mean.correction threshold_backward.default
    unsafe_split.Tensor var_mean.correction vdot.default
"""

DECOMPOSED: frozenset[str] = frozenset(_NAMES.split())
"""As the table of primitives names them."""
