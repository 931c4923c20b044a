"""Tests torch's own samples of its operations (OpInfo) in float32, forward and gradient.

opinfo_claims.py says which samples each operation claims. The default run takes one sample of every
second operation in numpy and some on a Vulkan device. All samples and their gradients take minutes:
pytest -m slow tests/compute/test_opinfo.py
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import opinfo
import pytest
import torch
from opinfo_claims import CLAIMS, LEFT_OUT, Claim, claimed
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ebmvk.compute import decompose, oracle, primitives
from ebmvk.compute.capture import graph_of
from ebmvk.compute.compiled import Compiled
from ebmvk.compute.fuse import fuse
from ebmvk.compute.lower import IGNORED, lower
from ebmvk.compute.rewrite import Limits
from ebmvk.compute.supported import DECOMPOSED
from ebmvk.engine.recording import Recorder
from ebmvk.errors import UnsupportedOperation

pytest.importorskip("expecttest", reason="torch's samples need expecttest")
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
NAMES = sorted(claimed(VERSION))
ON_DEVICE = (
    "addmm", "bmm", "cumsum", "div.floor_rounding", "erf", "gather", "index_add", "index_put", "lgamma", "log_softmax",
    "matmul", "max.reduction_with_dim", "nn.functional.conv1d", "nn.functional.cross_entropy",
    "nn.functional.embedding", "nn.functional.gelu", "nn.functional.layer_norm", "pow", "remainder", "scatter_add",
    "sort", "topk", "var", "where",
)  # fmt: skip
"""The operations that the default run tests on the device."""
TOGETHER = 64
"""The most samples in one program. Some operations, such as pools, have over a thousand."""


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.full_name: op for op in op_db if torch.float32 in op.supported_dtypes("cpu")}


def off(got: np.ndarray[Any, Any], exact: torch.Tensor, own: torch.Tensor, share: float) -> str:
    """The fault of a result, or "". Floats may be off by `share` of the largest element, or by four
    times torch's own error in float32. Infinities and NaN must agree with torch's float32 or
    float64."""
    want, float32 = exact.numpy(), own.numpy()
    if got.shape != float32.shape:
        return f"shape {got.shape}, not {float32.shape}"
    if float32.dtype.kind != "f":
        return "" if np.array_equal(got, float32) else f"{np.sum(got != float32)} of {got.size} elements differ"
    with np.errstate(all="ignore"):
        finite = np.isfinite(want) & np.isfinite(float32)
        size = np.abs(want[finite]).max(initial=0)
        allowed = share * size + 4 * np.abs(want - float32)[finite].max(initial=0) + 1e-12
        right = (np.abs(got - want) <= allowed) | (got == want) | (got == float32)
        right |= np.isnan(got) & (np.isnan(want) | np.isnan(float32))
    return "" if right.all() else f"off by {np.abs(got - want)[~right].max():.3g}, allowed {allowed:.3g}"


def check(parts: Sequence[opinfo.Sample], claim: Claim, *, gradients: bool, recorder: Recorder | None = None) -> str:
    """The fault of samples that are compiled as one function, or ""."""
    function, inputs = opinfo.together(parts, gradients=gradients)
    own = [result.detach() for result in function(*inputs)]
    exact = own if claim.float32 else [result.detach() for result in opinfo.in_float64(function, inputs)]
    program = fuse(lower(graph_of(function, inputs)), Limits(tensors=8))
    arrays = [value.numpy() for value in inputs]
    if recorder is None:
        got = oracle.run(program, arrays)
        share = 1e-4 if claim.float32 else 1e-6  # constants such as eps are float32 in the graph
    else:
        outputs = Compiled(recorder, program).run(dict(enumerate(arrays))).outputs
        got = [outputs[position] for position in range(len(outputs))]
        share = 1e-4 if claim.float32 else 1e-5  # sums are taken in another order
    assert len(got) == len(own) > 0
    for number, (result, want, single) in enumerate(zip(got, exact, own, strict=True)):
        if single.is_floating_point() or not claim.only_floats:
            wrong = off(result, want, single, share)
            if wrong:
                return f"result {number}: {wrong}"
    return ""


def _samples(operation: Any, *, most: int | None, gradients: bool) -> list[opinfo.Sample]:
    """All samples, or the last of the first few, because the very first is often the simplest."""
    found = (part for part in opinfo.samples(operation, gradients=gradients) if part.wanted or not gradients)
    return list(found) if most is None else list(islice(found, 3 * most))[-most:]


def check_all(
    operation: Any, claim: Claim, *, gradients: bool, most: int | None = None, recorder: Recorder | None = None
) -> None:
    """Checks the samples that the claim covers; at most `most` of them."""
    parts = _samples(operation, most=most, gradients=gradients)
    assert parts
    refusal = claim.no_gradient if gradients else claim.refused
    if not refusal:
        for first in range(0, len(parts), TOGETHER):
            wrong = check(parts[first : first + TOGETHER], claim, gradients=gradients, recorder=recorder)
            assert not wrong, f"of samples {first} and later, {wrong}"
        return
    passed = 0
    for number, part in enumerate(parts):
        if gradients and not part.gradients(*part.inputs):
            continue  # torch has none, as of the number of elements that aren't 0
        try:
            wrong = check([part], claim, gradients=gradients, recorder=recorder)
        except (UnsupportedOperation, GuardOnDataDependentSymNode) as error:
            assert any(words in str(error) for words in refusal), f"sample {number}: {error}"  # noqa: PT017
        else:
            assert not wrong, f"sample {number}: {wrong}"
            passed += 1
    assert passed or most is not None


def test_one_sample_of_every_second_operation(operations: dict[str, Any]) -> None:
    failed = []
    for name in NAMES[::2]:
        try:
            check_all(operations[name], CLAIMS[name], gradients=False, most=1)
        except (AssertionError, UnsupportedOperation) as error:
            failed.append(f"{name}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_samples_on_a_device(name: str, operations: dict[str, Any], recorder: Recorder) -> None:
    check_all(operations[name], CLAIMS[name], gradients=False, most=1, recorder=recorder)


def test_the_docs_list_operations_that_are_taken_apart() -> None:
    assert not DECOMPOSED & primitives.load().keys()
    assert {primitives.overload(operation) for operation in {**decompose.table(), **decompose.lists()}} >= DECOMPOSED


def _refuses(name: str) -> bool:
    return bool(CLAIMS[name].refused)


def _called(operation: Any, *, most: int | None, gradients: bool) -> set[str]:
    return opinfo.called(_samples(operation, most=most, gradients=gradients), gradients=gradients)


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_all_samples_call(operations: dict[str, Any]) -> None:
    found: set[str] = set()
    for name in NAMES:
        if not _refuses(name):
            found |= _called(operations[name], most=None, gradients=False)
            if CLAIMS[name].gradients and not CLAIMS[name].no_gradient and operations[name].supports_autograd:
                found |= _called(operations[name], most=None, gradients=True)
    # Data that torch makes on the host, and in-place views, are neither.
    known = {primitives.overload(operation) for operation in {**decompose.table(), **decompose.lists()}}
    assert (found - {*primitives.load(), *IGNORED}) & known == DECOMPOSED


def test_every_operation_of_torch_is_claimed_or_listed_with_a_reason(operations: dict[str, Any]) -> None:
    left_out = [name for names in LEFT_OUT.values() for name in names.split()]
    assert len(left_out) == len(set(left_out))
    assert not CLAIMS.keys() & set(left_out)
    assert operations.keys() >= set(NAMES)
    if VERSION == (2, 13):  # other versions have other samples
        assert operations.keys() == CLAIMS.keys() | set(left_out)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_samples(name: str, operations: dict[str, Any]) -> None:
    check_all(operations[name], CLAIMS[name], gradients=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if CLAIMS[name].gradients])
def test_gradients_of_all_samples(name: str, operations: dict[str, Any]) -> None:
    if not operations[name].supports_autograd:
        pytest.skip("torch has no gradient of it")
    check_all(operations[name], CLAIMS[name], gradients=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_more_samples_on_a_device(name: str, operations: dict[str, Any], recorder: Recorder) -> None:
    check_all(operations[name], CLAIMS[name], gradients=False, most=3, recorder=recorder)
