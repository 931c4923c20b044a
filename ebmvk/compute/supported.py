"""Operations of torch that are taken apart into primitives. tests/compute/test_opinfo.py keeps the
list up to date: it contains what torch's own test cases call."""

from __future__ import annotations

_NAMES = """
    _adaptive_avg_pool2d.default _adaptive_avg_pool2d_backward.default _adaptive_avg_pool3d.default
    _adaptive_avg_pool3d_backward.default _batch_norm_with_update.default _cdist_backward.default
    _cdist_forward.default _chunk_cat.default _euclidean_dist.default _log_softmax.default
    _log_softmax_backward_data.default _native_batch_norm_legit.default _native_batch_norm_legit.no_stats
    _prelu_kernel.default _prelu_kernel_backward.default _softmax.default _softmax_backward_data.default
    _unsafe_masked_index.default _unsafe_masked_index_put_accumulate.default acosh.default addbmm.default
    addcdiv.default addcmul.default addmv.default addr.default alias_copy.default aminmax.default
    as_strided_copy.default asinh.default atanh.default avg_pool2d.default avg_pool2d_backward.default
    avg_pool3d.default avg_pool3d_backward.default batch_norm_backward.default binary_cross_entropy.default
    binary_cross_entropy_backward.default binary_cross_entropy_with_logits.default block_diag.default
    celu.default clamp_max.Tensor clamp_min.Tensor clamp_min.default col2im.default convolution.default
    convolution_backward.default count_nonzero.default count_nonzero.dim_IntList cumprod.default deg2rad.default
    diag_embed.default diagonal_backward.default diagonal_copy.default dist.default elu.default
    elu_backward.default expand_copy.default eye.default eye.m fmax.default fmin.default frac.default
    gelu.default gelu_backward.default glu.default glu_backward.default hardshrink.default hardsigmoid.default
    hardsigmoid_backward.default hardswish.default hardswish_backward.default hardtanh.default
    hardtanh_backward.default heaviside.default huber_loss.default huber_loss_backward.default hypot.default
    im2col.default index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor
    isneginf.default isposinf.default kthvalue.default ldexp.Tensor leaky_relu.default
    leaky_relu_backward.default lerp.Scalar lerp.Tensor linalg_cross.default linalg_vector_norm.default
    linspace.default log_sigmoid_backward.default log_sigmoid_forward.default logaddexp.default
    logaddexp2.default logit.default logit_backward.default logspace.default logsumexp.default
    masked_fill.Scalar masked_fill.Tensor masked_scatter.default max_pool2d_with_indices.default
    max_pool2d_with_indices_backward.default max_pool3d_with_indices.default
    max_pool3d_with_indices_backward.default median.default median.dim mish.default mish_backward.default
    mse_loss.default mse_loss_backward.default nan_to_num.default nansum.default native_batch_norm.default
    native_batch_norm_backward.default native_group_norm.default native_group_norm_backward.default
    native_layer_norm.default native_layer_norm_backward.default nll_loss2d_backward.default
    nll_loss2d_forward.default nll_loss_backward.default nll_loss_forward.default reflection_pad1d.default
    reflection_pad1d_backward.default reflection_pad2d.default reflection_pad2d_backward.default
    reflection_pad3d.default reflection_pad3d_backward.default repeat.default replication_pad1d.default
    replication_pad2d.default replication_pad3d.default roll.default rot90.default select_backward.default
    sigmoid_backward.default silu.default silu_backward.default slice_backward.default smooth_l1_loss.default
    smooth_l1_loss_backward.default softplus.default softplus_backward.default softshrink.default stack.default
    std.correction std_mean.correction take.default tanh_backward.default threshold.default
    threshold_backward.default trace.default tril.default triu.default unfold_backward.default
    unsafe_split.Tensor upsample_nearest1d.default upsample_nearest2d.default upsample_nearest3d.default
    var.correction var_mean.correction vdot.default xlogy.Tensor
"""

DECOMPOSED: frozenset[str] = frozenset(_NAMES.split())
"""As the table of primitives names them."""
