"""Whole training steps, ours and other people's, equal torch's."""

from __future__ import annotations

import numpy as np
import pytest
import steps
import torch
from torch.nn import functional as F

from ebmvk.compute import oracle
from ebmvk.compute.capture import capture
from ebmvk.compute.fuse import fuse
from ebmvk.compute.ir import Call
from ebmvk.compute.lower import lower
from ebmvk.compute.step import compile_step
from ebmvk.errors import ArgumentError, UnsupportedOperation

WORDS, BATCH, TIME = 23, 2, 6


def _perturbed(model):
    torch.manual_seed(1)
    return {name: value.detach() + 0.02 * torch.randn_like(value) for name, value in model.named_parameters()}


def _language_batch():
    torch.manual_seed(2)
    return {
        "ids": torch.randint(WORDS, (BATCH, TIME)),
        "labels": torch.randint(WORDS, (BATCH, TIME)),
        "mask": torch.ones(BATCH, TIME, dtype=torch.long),
        "positions": torch.arange(TIME).repeat(BATCH, 1),
    }


def _transformers_loss(call, batch):
    logits = call(
        input_ids=batch["ids"], attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def _gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=TIME, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        attn_implementation="eager", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), _transformers_loss, _language_batch()


def _llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=TIME, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), _transformers_loss, _language_batch()


class Convolutions(torch.nn.Module):
    """Causal convolutions over tokens, one of them depthwise with a stride in its backward."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 8)
        self.wide = torch.nn.Conv1d(8, 12, 3, padding=2, dilation=1)
        self.each = torch.nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.strided = torch.nn.Conv1d(12, 8, 4, stride=2, padding=1)
        self.head = torch.nn.Linear(8, WORDS)

    def forward(self, ids):
        x = self.words(ids).transpose(1, 2)
        x = F.silu(self.wide(x)[..., :TIME])
        x = self.strided(F.relu(self.each(x)))
        return self.head(x.transpose(1, 2).repeat_interleave(2, 1))


class Recurrent(torch.nn.Module):
    """An LSTM cell of plain operations."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 8)
        self.gates = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(8, WORDS)

    def forward(self, ids):
        x = self.words(ids)
        h = c = torch.zeros(ids.shape[0], 8)
        seen = []
        for t in range(ids.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            seen.append(h)
        return self.head(torch.stack(seen, 1))


class Experts(torch.nn.Module):
    """A mixture of four experts, two for each token, without looks at the host."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 8)
        self.router = torch.nn.Linear(8, 4)
        self.up = torch.nn.Parameter(torch.randn(4, 8, 16) / 4)
        self.down = torch.nn.Parameter(torch.randn(4, 16, 8) / 4)
        self.norm = torch.nn.RMSNorm(8)
        self.head = torch.nn.Linear(8, WORDS)

    def forward(self, ids):
        x = self.words(ids).flatten(0, 1)
        weights, chosen = torch.topk(torch.softmax(self.router(x), -1), 2)
        share = torch.zeros(x.shape[0], 4).scatter(1, chosen, weights / weights.sum(-1, keepdim=True))
        every = torch.einsum("enf,efd->end", F.relu(torch.einsum("nd,edf->enf", x, self.up)) ** 2, self.down)
        x = x + (share.t().unsqueeze(-1) * every).sum(0)
        return self.head(self.norm(x)).unflatten(0, ids.shape)


def _of_ids(make):
    def build():
        torch.manual_seed(0)

        def loss(call, batch):
            return F.cross_entropy(call(batch["ids"]).flatten(0, 1), batch["labels"].flatten())

        batch = {name: value for name, value in _language_batch().items() if name in {"ids", "labels"}}
        return make(), loss, batch

    return build


MODELS = {
    "gpt2": _gpt2,
    "llama": _llama,
    "nanogpt": _of_ids(lambda: steps.NanoGPT(WORDS, 16, 1, 2, TIME)),
    "convolutions": _of_ids(Convolutions),
    "recurrent": _of_ids(Recurrent),
    "experts": _of_ids(Experts),
}


FOREIGN = ("convolutions", "recurrent", "experts")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FOREIGN else name for name in sorted(MODELS)]
)
def test_a_step_with_adamw_equals_torch_at_perturbed_weights(name):
    torch.manual_seed(0)
    model, loss, batch = MODELS[name]()
    parameters = _perturbed(model)
    state = {kind: {key: 0.01 * torch.rand_like(value) for key, value in parameters.items()} for kind in ("m", "v")}
    step = steps.training_step(model, loss)
    arguments = (parameters, state, batch, {"lr": torch.tensor(1e-3), "step": torch.tensor(3.0)})
    flat, leaves = steps.flat(step, arguments)
    kept = 3 * len(parameters)
    captured = capture(flat, leaves, donated={i: i for i in range(kept)})
    plain = lower(captured)
    fused = fuse(plain)
    assert len(fused.nodes) < len(plain.nodes) / 3
    arrays = [leaf.numpy() for leaf in leaves]
    expected = [value.detach().numpy() for value in flat(*leaves)]
    exact = oracle.run(plain, arrays)
    for got, want, double in zip(oracle.run(fused, arrays), expected, exact, strict=True):
        # The same formulas in float64, so only the order of sums may differ.
        np.testing.assert_allclose(got, double, rtol=1e-9, atol=1e-12)
        # torch computes in float32: some hundred roundings of weights near 1.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_fused_nanogpt_needs_few_dispatches():
    step, arguments = steps.nanogpt(words=33, width=32, layers=2, heads=2, batch=2, time=16)
    flat, leaves = steps.flat(step, arguments)
    captured = capture(flat, leaves, donated={i: i for i in range(len(leaves) - 4)}, others=[])
    program = fuse(lower(captured))
    calls = [node.name for node in program.nodes if isinstance(node, Call)]
    # 6 products a layer and the head, each with two in backward.
    assert calls.count("matmul") == 3 * (2 * 6 + 1)
    assert len(program.nodes) <= 70


def test_compile_step_trains_like_the_step_itself():
    step, (parameters, state, batch, scalars) = steps.nanogpt(width=8, layers=1, time=6)
    compiled = compile_step(step, backend="reference")
    compiled.start(parameters, state)
    for number in range(4):
        scalars = {"lr": torch.tensor(1e-3 / (1 + number)), "step": torch.tensor(1.0 + number)}
        record = compiled.run(batch, scalars)
        parameters, state, expected = step(parameters, state, batch, scalars)
        assert float(record["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    got, moments = compiled.read()
    for name in parameters:
        # Where a gradient is about 0, AdamW divides one rounding error by another: lr a step.
        torch.testing.assert_close(got[name], parameters[name], rtol=0, atol=2e-3)
        torch.testing.assert_close(moments["m"][name], state["m"][name], rtol=1e-3, atol=1e-6)
    assert len(compiled.programs) == 1


def test_other_shapes_get_a_program_of_their_own_and_share_the_weights():
    step, (parameters, state, batch, scalars) = steps.nanogpt(width=8, layers=1, time=6)
    compiled = compile_step(step, backend="reference", check=False)
    compiled.start(parameters, state)
    compiled.run(batch, scalars)
    parameters, state, _ = step(parameters, state, batch, scalars)
    last = {name: value[:1] for name, value in batch.items()}
    record = compiled.run(last, scalars)
    assert len(compiled.programs) == 2
    expected = step(parameters, state, last, scalars)[2]["loss"]
    assert float(record["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_frozen_weights_stay_bit_for_bit():
    step, (parameters, state, batch, scalars) = steps.nanogpt(width=8, layers=1, time=6)

    def frozen(parameters, state, batch, scalars):
        new, state, record = step(parameters, state, batch, scalars)
        return new | {"words.weight": parameters["words.weight"]}, state, record

    got, _, _ = compile_step(frozen, backend="reference", check=False)(parameters, state, batch, scalars)
    assert torch.equal(got["words.weight"], parameters["words.weight"])
    assert not torch.equal(got["head.weight"], parameters["head.weight"])


def test_steps_may_change_their_arguments_in_place():
    def step(parameters, state, batch, scalars):
        for value, momentum in zip(parameters.values(), state.values(), strict=True):
            momentum.mul_(0.9).add_(value * batch["x"].sum())
            value.sub_(scalars["lr"] * momentum)
        return parameters, state, {"first": parameters["a"][0]}

    def arguments():
        parameters = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
        state = {name: torch.full_like(value, 0.5) for name, value in parameters.items()}
        return parameters, state, {"x": torch.tensor([1.0, 2.0])}, {"lr": torch.tensor(0.1)}

    got = compile_step(step, backend="reference")(*arguments())
    torch.testing.assert_close(got, step(*arguments()))


def test_results_of_another_shape_than_what_they_replace_are_refused():
    def step(parameters, state, batch, scalars):
        return {"w": parameters["w"][:1] * batch}, state, {}

    with pytest.raises(ArgumentError, match=r"turns parameters\['w'\], \(3,\) torch.float32, into \(1,\)"):
        compile_step(step, backend="reference")({"w": torch.ones(3)}, {}, torch.ones(1), {})


def test_a_missing_operation_is_named_with_its_line():
    def step(parameters, state, batch, scalars):
        return parameters, state, {"det": torch.linalg.det(batch * parameters["w"])}

    with pytest.raises(UnsupportedOperation, match=r"linalg.*test_compute_models.py:\d+: return parameters, state"):
        compile_step(step, backend="reference")({"w": torch.eye(3)}, {}, torch.eye(3), {})
