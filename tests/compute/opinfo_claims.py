"""Lists which of torch's own samples (OpInfo, float32) must compile, by OpInfo's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """The claims for an operation: its samples compile, and so do their gradients if torch has any.

    refused: words of the error that some samples get instead; empty if all samples compile.
    gradients: False if no gradients are claimed. no_gradient: as `refused`, for gradients.
    only_floats: True if positions may differ from torch's when values are equal. float32: True if
    the results are compared only with torch's float32, because the operation requires float32.
    """

    refused: tuple[str, ...] = ()
    gradients: bool = True
    no_gradient: tuple[str, ...] = ()
    only_floats: bool = False
    float32: bool = False


WHOLE = """
    H T __radd__ __rdiv__ __rmatmul__ __rmod__ __rmul__ __rpow__ __rsub__ _batch_norm_with_update
    _native_batch_norm_legit _softmax_backward_data _unsafe_masked_index _unsafe_masked_index_put_accumulate abs
    acos acosh add addbmm addcdiv addcmul addmm addmm.decomposed addmv addr alias_copy amax amin aminmax asin
    asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d baddbmm block_diag bmm broadcast_tensors
    broadcast_to cartesian_prod cat cdist ceil chunk clamp clamp_max clamp_min clone column_stack conj
    conj_physical constant_pad_nd contiguous copysign cos cosh cross cumprod cumsum cumulative_trapezoid deg2rad
    diag diag_embed diagflat diagonal diagonal_copy diagonal_scatter diff dist div.floor_rounding
    div.no_rounding_mode div.trunc_rounding dot dsplit dstack einsum erf erfc erfinv exp exp2 expand expand_as
    expand_copy expm1 fill flatten flip fliplr flipud float floor fmax fmin fmod frac gather gradient hsplit
    hstack hypot index_add index_copy index_select inner kron kthvalue ldexp lerp lgamma linalg.cross
    linalg.diagonal linalg.multi_dot linalg.vander linalg.vecdot linalg.vector_norm log log10 log1p log2
    log_softmax logaddexp logaddexp2 logit logsumexp mH mT masked.amax masked.amin masked.mean masked.softmax
    masked.sum masked_fill matmul max.binary max.reduction_no_dim max.reduction_with_dim maximum mean median
    meshgrid.list_of_tensors meshgrid.variadic_tensors min.binary min.reduction_no_dim min.reduction_with_dim
    minimum mm movedim mul mv nan_to_num nanquantile nansum native_batch_norm native_group_norm
    native_layer_norm neg nn.functional.adaptive_avg_pool1d nn.functional.adaptive_avg_pool2d
    nn.functional.adaptive_avg_pool3d nn.functional.avg_pool1d nn.functional.avg_pool2d nn.functional.avg_pool3d
    nn.functional.batch_norm nn.functional.binary_cross_entropy nn.functional.binary_cross_entropy_with_logits
    nn.functional.celu nn.functional.conv1d nn.functional.conv2d nn.functional.conv3d
    nn.functional.conv_transpose1d nn.functional.conv_transpose2d nn.functional.conv_transpose3d
    nn.functional.cosine_similarity nn.functional.cross_entropy nn.functional.elu nn.functional.gelu
    nn.functional.glu nn.functional.group_norm nn.functional.hardsigmoid nn.functional.hardswish
    nn.functional.hardtanh nn.functional.huber_loss nn.functional.instance_norm nn.functional.kl_div
    nn.functional.l1_loss nn.functional.layer_norm nn.functional.leaky_relu nn.functional.linear
    nn.functional.linear_cross_entropy nn.functional.logsigmoid nn.functional.max_pool1d
    nn.functional.max_pool2d nn.functional.max_pool3d nn.functional.mish nn.functional.mse_loss nn.functional.nll_loss
    nn.functional.normalize nn.functional.pad.circular nn.functional.pad.constant nn.functional.pad.reflect
    nn.functional.prelu nn.functional.relu nn.functional.relu6 nn.functional.rms_norm nn.functional.selu
    nn.functional.silu nn.functional.smooth_l1_loss nn.functional.softmin nn.functional.softplus
    nn.functional.softsign nn.functional.tanhshrink nn.functional.threshold nn.functional.unfold norm outer
    permute positive pow prod quantile ravel reciprocal remainder repeat reshape resolve_conj resolve_neg roll
    rot90 round rsqrt rsub scatter_add select select_scatter sigmoid sign sin sinh slice slice_scatter softmax
    sort split split_with_sizes sqrt square squeeze squeeze.multiple stack std std_mean std_mean.unbiased sub
    sum sum_to_size t take_along_dim tan tanh tensordot tile topk trace transpose tril triu true_divide trunc
    unbind unflatten unfold unsafe_chunk unsqueeze var var_mean var_mean.unbiased vdot view where xlogy
"""
"""Operations of which all samples and their gradients are claimed."""

FORWARD = """
    _chunk_cat all any arange argmax argmin argsort bmm.triton_optimized bool byte char count_nonzero digamma eq
    eye floor_divide full ge gt heaviside int isclose isfinite isinf isnan isneginf isposinf isreal le linspace
    logical_and logical_not logical_or logical_xor logspace long lt masked.argmax masked.argmin masked_scatter
    ne nn.functional.hardshrink nn.functional.interpolate.nearest nn.functional.pad.replicate
    nn.functional.softshrink ones scalar_tensor sgn take zeros
"""
"""Operations of which all samples are claimed, but no gradients: torch has none, or its gradient
can't be compiled."""

PARTS: dict[str, Claim] = {
    "__getitem__": Claim(
        refused=("indexing by a mask, whose result has no fixed shape",),
        no_gradient=("data-dependent",),
    ),
    "as_strided": Claim(no_gradient=("prims.as_strided_scatter.default",)),
    "as_strided_copy": Claim(no_gradient=("prims.as_strided_scatter.default",)),
    "full_like": Claim(refused=("float64",), gradients=False),
    "index_fill": Claim(no_gradient=("aten._unique.default",)),
    "index_put": Claim(
        refused=("indexing by a mask, whose result has no fixed shape",),
        no_gradient=("indexing by a mask, whose result has no fixed shape",),
    ),
    "isin": Claim(refused=("aten.searchsorted.Tensor",), gradients=False),
    "linalg.matrix_norm": Claim(refused=("_linalg_svd",), no_gradient=("_linalg_svd",)),
    "linalg.matrix_power": Claim(
        refused=("linalg_inv_ex", "_linalg_check_errors"), no_gradient=("linalg_inv_ex", "_linalg_check_errors")
    ),
    "linalg.norm": Claim(refused=("_linalg_svd",), no_gradient=("_linalg_svd",)),
    "linalg.norm.subgradients_at_zero": Claim(
        refused=("aten._linalg_svd.default",), no_gradient=("aten._linalg_svd.default",)
    ),
    "linspace.tensor_overload": Claim(refused=("float64",), gradients=False),
    "logspace.tensor_overload": Claim(refused=("float64",), gradients=False),
    "new_full": Claim(refused=("float64",), gradients=False),
    "new_ones": Claim(refused=("float64",), gradients=False),
    "new_zeros": Claim(refused=("float64",), gradients=False),
    "nn.functional.adaptive_max_pool1d": Claim(refused=("aten.adaptive_max_pool2d.default",), gradients=False),
    "nn.functional.adaptive_max_pool2d": Claim(refused=("aten.adaptive_max_pool2d.default",), gradients=False),
    "nn.functional.adaptive_max_pool3d": Claim(refused=("aten.adaptive_max_pool3d.default",), gradients=False),
    "nn.functional.embedding": Claim(refused=("aten.embedding_renorm.default",)),
    "nn.functional.linear_cross_entropy.chunked_none": Claim(
        refused=("torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default",)
    ),
    "nn.functional.scaled_dot_product_attention": Claim(
        refused=("aten.bernoulli.p",), no_gradient=("aten.bernoulli.p",)
    ),
    "ones_like": Claim(refused=("float64",), gradients=False),
    "repeat_interleave": Claim(
        refused=("aten.repeat_interleave.Tensor",), no_gradient=("aten.repeat_interleave.Tensor",)
    ),
    "scatter": Claim(refused=("aten.scatter.reduce", "aten.scatter.value_reduce")),
    "zeros_like": Claim(refused=("float64",), gradients=False),
}

CLAIMS: dict[str, Claim] = {
    **{name: Claim() for name in WHOLE.split()},
    **{name: Claim(gradients=False) for name in FORWARD.split()},
    **PARTS,
}

LATER = {
    "bmm.triton_optimized", "native_group_norm", "nn.functional.linear_cross_entropy",
    "nn.functional.linear_cross_entropy.chunked_none",
}  # fmt: skip
"""Operations that have samples only from torch 2.13 on."""

QUANTILES = {"nanquantile", "quantile"}
"""Claimed only for torch 2.13, because 2.9 reads the values of the quantiles, and 2.15 computes in
float64."""


def claimed(version: tuple[int, ...]) -> dict[str, Claim]:
    """The claims for a version of torch, such as (2, 13)."""
    without = (set() if version >= (2, 13) else LATER) | (set() if version == (2, 13) else QUANTILES)
    return {name: claim for name, claim in CLAIMS.items() if name not in without}


LEFT_OUT: dict[str, str] = {
    "draws random numbers": """
    bernoulli cauchy exponential geometric log_normal multinomial nn.functional.alpha_dropout
    nn.functional.dropout nn.functional.dropout2d nn.functional.dropout3d
    nn.functional.feature_alpha_dropout.with_train nn.functional.feature_alpha_dropout.without_train
    nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d
    nn.functional.multi_head_attention_forward nn.functional.rrelu normal normal.in_place normal.number_mean
    pca_lowrank rand_like randint randint_like randn randn_like svd_lowrank uniform
    """,
    "looks at values, or has a result whose shape depends on them": """
    allclose argwhere bucketize combinations corrcoef cov equal histc histogram histogramdd masked_select
    nonzero unique unique_consecutive
    """,
    "torch leaves the values of its result open": """
    empty empty_like empty_permuted empty_strided new_empty new_empty_strided
    """,
    "complex numbers aren't on the device": """
    cdouble cfloat chalf complex view_as_complex
    """,
    "float64 and float16 aren't on the device": """
    bfloat16 double half log_softmax.with_dtype nn.functional.softmin.with_dtype softmax.with_dtype
    """,
    "its result isn't a tensor": """
    broadcast_shapes item
    """,
    "a sparse tensor": """
    sparse.mm.reduce sparse.sampled_addmm to_sparse
    """,
    "for CUDA alone": """
    jiterator_2inputs_2outputs jiterator_4inputs_with_extra_args jiterator_binary jiterator_binary_return_by_ref
    jiterator_unary
    """,
    "an operation that it needs has no kernel": """
    angle as_strided_scatter cholesky cholesky_inverse cholesky_solve cummax cummin float_power frexp geqrf
    hash_tensor i0 index_reduce.amax index_reduce.amin index_reduce.mean index_reduce.prod logcumsumexp lu
    lu_solve lu_unpack matrix_exp nanmedian nn.functional.linear_cross_entropy.chunked scatter_reduce.amax
    scatter_reduce.sum stft
    """,
    "the sample itself needs more than its tensor holds": """
    as_strided.partial_views
    """,
    "not tried so far": """
    _segment_reduce.lengths _segment_reduce.offsets _upsample_bilinear2d_aa fft.fft fft.fft2 fft.fftn
    fft.fftshift fft.hfft fft.hfft2 fft.hfftn fft.ifft fft.ifft2 fft.ifftn fft.ifftshift fft.ihfft fft.ihfft2
    fft.ihfftn fft.irfft fft.irfft2 fft.irfftn fft.rfft fft.rfft2 fft.rfftn grid_sampler_2d grid_sampler_3d
    igamma igammac linalg.cholesky linalg.cholesky_ex linalg.cond linalg.det linalg.eig linalg.eigh
    linalg.eigvals linalg.eigvalsh linalg.householder_product linalg.inv linalg.inv_ex linalg.ldl_factor
    linalg.ldl_factor_ex linalg.ldl_solve linalg.lstsq linalg.lstsq.grad_oriented linalg.lu linalg.lu_factor
    linalg.lu_factor_ex linalg.lu_solve linalg.matrix_rank linalg.matrix_rank.hermitian linalg.pinv
    linalg.pinv.hermitian linalg.pinv.singular linalg.qr linalg.slogdet linalg.solve linalg.solve_ex
    linalg.solve_triangular linalg.svd linalg.svdvals linalg.tensorinv linalg.tensorsolve logdet masked.cumprod
    masked.cumsum masked.log_softmax masked.logaddexp masked.logsumexp masked.median masked.norm
    masked.normalize masked.prod masked.softmin masked.std masked.var max_pool2d_with_indices_backward mode
    msort mvlgamma.mvlgamma_p_1 mvlgamma.mvlgamma_p_3 mvlgamma.mvlgamma_p_5 nanmean narrow narrow_copy
    native_dropout_backward nextafter nn.functional.bilinear nn.functional.channel_shuffle
    nn.functional.cosine_embedding_loss nn.functional.ctc_loss nn.functional.embedding_bag
    nn.functional.gaussian_nll_loss nn.functional.grid_sample nn.functional.hinge_embedding_loss
    nn.functional.interpolate.area nn.functional.interpolate.bicubic nn.functional.interpolate.bilinear
    nn.functional.interpolate.linear nn.functional.interpolate.nearest-exact nn.functional.interpolate.trilinear
    nn.functional.local_response_norm nn.functional.margin_ranking_loss
    nn.functional.max_unpool1d nn.functional.max_unpool1d.grad nn.functional.max_unpool2d
    nn.functional.max_unpool2d.grad nn.functional.max_unpool3d nn.functional.max_unpool3d.grad
    nn.functional.multi_margin_loss nn.functional.multilabel_margin_loss
    nn.functional.multilabel_soft_margin_loss nn.functional.pad.replicate_negative
    nn.functional.pairwise_distance nn.functional.pdist nn.functional.pixel_shuffle
    nn.functional.pixel_unshuffle nn.functional.poisson_nll_loss nn.functional.soft_margin_loss
    nn.functional.triplet_margin_loss nn.functional.triplet_margin_with_distance_loss
    nn.functional.upsample_bilinear nn.functional.upsample_nearest nonzero_static norm.fro norm.inf norm.nuc
    ormqr permute_copy pinverse polar polygamma.polygamma_n_0 polygamma.polygamma_n_1 polygamma.polygamma_n_2
    polygamma.polygamma_n_3 polygamma.polygamma_n_4 put qr rad2deg real renorm reshape_as resize_ resize_as_
    round.decimals_0 round.decimals_3 round.decimals_neg_3 scatter_reduce.amin scatter_reduce.mean
    scatter_reduce.prod searchsorted short signal.windows.bartlett signal.windows.blackman signal.windows.cosine
    signal.windows.exponential signal.windows.gaussian signal.windows.general_cosine
    signal.windows.general_hamming signal.windows.hamming signal.windows.hann signal.windows.kaiser
    signal.windows.nuttall signbit sinc special.airy_ai special.bessel_j0 special.bessel_j1 special.bessel_y0
    special.bessel_y1 special.chebyshev_polynomial_t special.chebyshev_polynomial_u
    special.chebyshev_polynomial_v special.chebyshev_polynomial_w special.entr special.erfcx
    special.hermite_polynomial_h special.hermite_polynomial_he special.i0e special.i1 special.i1e
    special.laguerre_polynomial_l special.legendre_polynomial_p special.log_ndtr special.modified_bessel_i0
    special.modified_bessel_i1 special.modified_bessel_k0 special.modified_bessel_k1 special.ndtr special.ndtri
    special.polygamma.special_polygamma_n_0 special.scaled_modified_bessel_k0 special.scaled_modified_bessel_k1
    special.shifted_chebyshev_polynomial_t special.shifted_chebyshev_polynomial_u
    special.shifted_chebyshev_polynomial_v special.shifted_chebyshev_polynomial_w special.spherical_bessel_j0
    special.xlog1py special.zeta split.list_args split_with_sizes_copy squeeze_copy std.unbiased svd t_copy
    tensor_split to torch.ops.aten._safe_softmax.default transpose_copy trapezoid trapz triangular_solve
    unbind_copy unfold_copy unsafe_split unsqueeze_copy var.unbiased view_as view_copy vsplit vstack zero_
    """,
}
"""{why operations aren't claimed: their names}."""
