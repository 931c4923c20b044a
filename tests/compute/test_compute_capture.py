"""Tests capture: the steps that it refuses, and its graphs, which don't depend on the process."""

from __future__ import annotations

import functools
import gc
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import steps
import torch

from ebmvk.compute import replay
from ebmvk.compute.capture import capture, note_caches, trace
from ebmvk.compute.origins import origin_of
from ebmvk.compute.replay import variations
from ebmvk.compute.step import compile_step
from ebmvk.errors import ArgumentError, UnsupportedOperation

LOOKS = {
    "item": lambda x: x * x.sum().item(),
    "tolist": lambda x: x * x.tolist()[0],
    "numpy": lambda x: x * float(x.numpy()[0]),
    "float": lambda x: x * float(x.sum()),
    "int": lambda x: x * int(x.sum()),
    "bool": lambda x: x * 2 if x.sum() > 0 else x,
    "nonzero": lambda x: torch.nonzero(x).float(),
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_steps_that_read_values_are_refused_with_their_line(look):
    with pytest.raises(UnsupportedOperation, match="looks at the values") as error:
        capture(lambda x: [LOOKS[look](x)], [torch.tensor([1.0, 2.0, 0.0])])
    assert Path(__file__).name in error.value.what
    assert f'"{look}": ' in error.value.what


def test_an_argument_without_a_user_is_named():
    with pytest.raises(ArgumentError, match="nothing in the step uses scalars lr"):
        capture(lambda x, lr: [x * 2], [torch.ones(3), torch.tensor(0.1)], ["x", "scalars lr"])


def test_numbers_in_place_of_tensors_are_refused():
    with pytest.raises(ArgumentError, match=r"scalars\['lr'\] is 0.1, not a tensor"):
        compile_step(lambda p, s, b, c: (p, s, {}), backend="reference")({}, {}, {}, {"lr": 0.1})


def test_a_parameter_that_the_step_was_not_given_is_refused():
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ArgumentError, match="a parameter of shape"):
        capture(lambda x: [model(x)], [torch.ones(4, 3)])


def counts(x, memory):
    memory.append(1)
    return x * len(memory)


def takes_turns(x, memory):
    memory.append(1)
    return x * (1 + len(memory) % 2)


def draws(x, memory):
    return x * random.random()


def knows_an_earlier_batch(x, memory):
    memory.append(x.shape)
    return x + (1 if len(memory) > 1 else 0)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("impure", [counts, takes_turns, draws, knows_an_earlier_batch])
def test_a_step_that_is_not_pure_disagrees_with_its_graph(impure, large, monkeypatch):
    """One other batch, which is all that a large graph gets, is enough to find this."""
    if large:
        monkeypatch.setattr(replay, "LARGE", 0)
    memory = []
    with pytest.raises(UnsupportedOperation, match="result 0 differs"):
        capture(lambda x: [impure(x, memory)], [torch.ones(3)])


@pytest.mark.parametrize(("elements", "batches"), [(replay.LARGE // 2, 2), (replay.LARGE, 1)])
def test_a_large_graph_runs_on_one_other_batch(elements, batches):
    """Its size is that of all results, which need no memory here."""
    graph = torch.fx.symbolic_trace(lambda x: x * 2)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.meta["val"] = torch.empty(elements, device="meta")
    assert len(replay.others(graph, [torch.ones(3)])) == batches


@pytest.mark.parametrize("frozen", [False, True])
def test_cached_constants_neither_enter_a_graph_nor_stay_behind(frozen):
    """This includes constants of functions that the garbage collector skips (gc.freeze)."""

    @functools.lru_cache
    def table(n):
        return torch.arange(float(n)) ** 2

    if frozen:
        note_caches()
        gc.freeze()
    real = table(5)
    captured = capture(lambda x: [x + table(5)], [torch.ones(5)])
    assert not [node for node in captured.graph.graph.nodes if node.op == "get_attr"]
    again = table(5)
    assert type(again) is torch.Tensor
    assert torch.equal(again, real)


def test_graphs_have_no_mutating_nodes_but_the_arguments_updates():
    def step(w, g):
        w.mul_(0.9)
        w.add_(g, alpha=-0.1)
        torch._foreach_mul_([w], 2.0)
        return [w.sum()]

    captured = capture(step, [torch.ones(3), torch.ones(3)], ["w", "g"])
    changing = [node for node in captured.graph.graph.nodes if "_." in str(node.target)]
    assert [str(node.target) for node in changing] == ["aten.copy_.default"]
    assert changing[0].args[0].op == "placeholder"


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("twice", [False, True])
def test_operations_of_gradients_name_the_line_whose_gradient_they_are(twice):
    """Operations of autograd functions and of a gradient of a gradient do so too."""

    def step(w, x):
        w = w.detach().requires_grad_()
        hidden = torch.tanh(x @ w)
        squared = Square.apply(hidden)
        loss = squared.exp().sum()
        (grad,) = torch.autograd.grad(loss, w, create_graph=twice)
        if twice:
            (grad,) = torch.autograd.grad(grad.sin().sum(), w)
        return [grad]

    graph = trace(step, [torch.randn(3, 4), torch.randn(5, 3)]).graph
    lines = {}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            lines.setdefault(str(node.target), set()).add(origin_of(node).rpartition(": ")[2])
    tanh, square = "hidden = torch.tanh(x @ w)", "squared = Square.apply(hidden)"
    assert lines["aten.mm.default"] == lines["aten.tanh_backward.default"] == {tanh}
    assert lines["aten.exp.default"] == {"loss = squared.exp().sum()"}
    assert {"return x * x", square} & lines["aten.mul.Tensor"]
    told = lines["aten.ones_like.default"]
    assert all("torch.autograd.grad" in line for line in told), "where a gradient begins"


def test_a_process_that_has_traced_can_fork_and_train():
    """This needs a fresh process, because autograd starts its threads at its first pass. It once
    failed with builds of torch for CUDA."""
    program = (
        "import os, torch; from ebmvk.compute.capture import capture\n"
        "def step(w):\n"
        "    w = w.detach().requires_grad_()\n"
        "    return [torch.autograd.grad((w * w).sum(), w)[0]]\n"
        "capture(step, [torch.ones(3)], others=[])\n"
        "if os.fork() == 0:\n"
        "    torch.ones((), requires_grad=True).backward()\n"
        "    os._exit(0)\n"
        "print(os.wait()[1])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.strip() == "0", ended.stderr


def test_variations_keep_integers_in_range_and_zeros_become_positive():
    tokens, moments, rate = torch.arange(10).reshape(2, 5), torch.zeros(4), torch.tensor(0.1)
    for other in variations([tokens, moments, rate]):
        assert sorted(other[0].flatten().tolist()) == list(range(10))
        assert (other[1] > 0).all()
        assert 0 < other[2] < 0.2
        assert other[2] != rate


def test_the_key_is_the_same_in_a_fresh_process_and_tells_steps_apart():
    program = (
        "import steps, torch; from ebmvk.compute.capture import capture\n"
        "step, leaves = steps.flat(*steps.nanogpt(width=8, layers=1, time=4))\n"
        "print(capture(step, leaves, others=[]).key)"
    )
    here = Path(__file__).parent
    root = here.parents[1]
    # The seed changes the order of sets.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{here}", "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", program]
    first = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout.strip()
    assert len(first) == 64
    step, leaves = steps.flat(*steps.nanogpt(width=8, layers=1, time=4))
    assert capture(step, leaves, others=[]).key == first
    other, leaves = steps.flat(*steps.nanogpt(width=8, layers=1, time=5))
    assert capture(other, leaves, others=[]).key != first
