"""Tests composed strided views, folded expressions, and the search for the first wrong node."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmvk.compute import expr, oracle, views
from ebmvk.compute.ir import Call, Loop, Program, Store, Tensor, View
from ebmvk.compute.rewrite import dense_strides


def addresses(view):
    """The flat position of each element of a view."""
    grids = np.indices(view.shape, sparse=True) if view.shape else []
    total = np.full(view.shape, view.offset)
    for grid, stride in zip(grids, view.strides, strict=True):
        total = total + grid * stride
    return total


@st.composite
def stored_and_read(draw):
    """A view that a loop stores to (a permuted dense tensor), and a strided view that reads it."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(sizes))))
    tensor = Tensor(0, tuple(sizes[a] for a in order), "float32")
    strides = [0] * len(sizes)
    for axis, stride in zip(order, dense_strides(tensor.shape), strict=True):
        strides[axis] = stride
    store = View(tensor, tuple(sizes), tuple(strides), 0)
    leaf = View(Tensor(1, (4**6,), "float32"), tuple(sizes), tuple(draw(st.integers(0, 9)) for _ in sizes), 3)
    count = int(np.prod(sizes))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)))
    moves = tuple(draw(st.integers(0, max(1, count // 2))) for _ in shape)
    load = View(tensor, shape, moves, draw(st.integers(0, count - 1)))
    return store, leaf, load


@settings(max_examples=400, deadline=None)
@given(stored_and_read())
def test_a_composed_view_reads_what_was_stored(case):
    store, leaf, load = case
    made = views.restrided(store, load, leaf)
    if made is None:
        return
    written = dict(zip(addresses(store).ravel().tolist(), addresses(leaf).ravel().tolist(), strict=True))
    expected = np.vectorize(written.__getitem__)(addresses(load))
    np.testing.assert_array_equal(addresses(made), expected)


def test_reshapes_permutations_slices_and_repeats_compose():
    store = Tensor(0, (6, 4, 5), "float32").view()
    leaf = View(Tensor(1, (600,), "float32"), (6, 4, 5), (20, 5, 1), 7)
    loads = {
        "merged": View(store.tensor, (24, 5), (5, 1), 0),
        "split": View(store.tensor, (2, 3, 4, 5), (60, 20, 5, 1), 0),
        "flat": View(store.tensor, (120,), (1,), 0),
        "turned": View(store.tensor, (5, 4, 6), (1, 5, 20), 0),
        "cut": View(store.tensor, (3, 2), (40, 1), 7),
        "repeated": View(store.tensor, (6, 9), (20, 0), 1),
    }
    for name, load in loads.items():
        made = views.restrided(store, load, leaf)
        assert made is not None, name
        np.testing.assert_array_equal(addresses(made), addresses(load) + 7)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=4))
def test_views_without_overlap_have_distinct_addresses(axes):
    shape, strides = tuple(size for size, _ in axes), tuple(stride for _, stride in axes)
    view = View(Tensor(0, (4**6,), "float32"), shape, strides, 0)
    found = addresses(view).ravel()
    if not views.overlaps(view):
        assert len(np.unique(found)) == found.size


def test_equal_expressions_are_one_object_and_constants_fold():
    x = expr.load(Tensor(0, (3,), "float32").view())
    one = expr.const(1.0, "float32")
    assert expr.op("exp", x) is expr.op("exp", expr.load(Tensor(0, (3,), "float32").view()))
    assert expr.op("mul", x, one) is x
    assert expr.op("add", one, one) is expr.const(2.0, "float32")
    assert expr.const(0.0, "float32") is not expr.const(-0.0, "float32")
    assert expr.where(expr.op("lt", one, one), x, one) is one


def _program():
    source, middle, last = (Tensor(n, (4, 4), "float32") for n in range(3))
    double = Loop((4, 4), 0, (Store(middle.view(), expr.op("add", *[expr.load(source.view())] * 2)),))
    product = Call("matmul", (middle.view(), source.view()), (last.view(),))
    origins = {1: "aten.add.Tensor at step.py:3: y = x + x", 2: "aten.mm.default at step.py:4: y @ x"}
    return Program([source], {}, [double, product], [last.view()], [source.view()], {}, origins)


def test_the_first_wrong_node_is_named_with_its_line():
    program = _program()
    x = np.arange(16.0).reshape(4, 4)

    def device(wrong):
        def run(program, leaves):
            values = {}
            oracle.run(program, leaves, np.float32, keep=values)
            if wrong == 1:
                values[1][5] += 0.5
                values[2] = (values[1].reshape(4, 4) @ x).ravel()  # right for the given inputs
            elif wrong == 2:
                values[2][7] = np.nan
            return values

        return run

    assert oracle.compare(program, device(0), [x]) is None
    first = oracle.compare(program, device(1), [x])
    assert (first.position, first.where, first.expected) == (0, (1, 1), 10.0)
    assert "step.py:3" in str(first)
    second = oracle.compare(program, device(2), [x])
    assert (second.position, second.where) == (1, (1, 3))
    assert "matmul; aten.mm.default at step.py:4" in str(second)
