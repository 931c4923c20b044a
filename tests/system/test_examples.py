"""The examples that train models of other people run, at a tiny size, on the CPU and on a Vulkan
device, with the same losses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .conftest import need_vulkan

EXAMPLES = Path(__file__).parents[2] / "examples"
CLOSE = 1e-5  # nats: float32, in another order of sums


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_gpt2(folder: Path, text: str) -> Any:
    """A folder such as transformers saves: random weights, and a tokenizer of this text."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([text], trainer)
    end = "<|endoftext|>"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model


def test_finetune_gpt2_saves_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    text = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 20
    before = random_gpt2(tmp_path / "gpt2", text)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / "gpt2"), str(tmp_path / "text.txt")]
    options = ["--steps", "3", "--length", "8", "--lr", "1e-3"]
    module = example("finetune_gpt2")
    expected = module.main([*arguments, str(tmp_path / "on-cpu"), "--device", "cpu", *options])
    after = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "on-cpu")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "on-cpu").decode([5]) != ""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    assert not torch.equal(old["transformer.wte.weight"], new["transformer.wte.weight"])
    assert torch.equal(new["transformer.wte.weight"], new["lm_head.weight"])
    need_vulkan()
    found = module.main([*arguments, str(tmp_path / "on-vulkan"), "--device", "vulkan", *options])
    assert found == pytest.approx(expected, abs=CLOSE)
    device = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "on-vulkan").state_dict()
    for name, value in new.items():
        # Adam divides by the size of a gradient, so a gradient of about 0 may move a weight by lr.
        torch.testing.assert_close(device[name], value, rtol=0, atol=2 * 3 * 1e-3)
        assert float((device[name] - value).norm()) <= 1e-2 * float((value - old[name]).norm()) + 1e-6, name


def test_nanogpt_trains_on_the_documentation_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "3", "--batch", "2", "--length", "8", "--width", "16", "--layers", "1", "--heads", "2"]
    module = example("nanogpt")
    expected = module.main(["--device", "cpu", "--write", "5", *options])
    assert expected[0] == pytest.approx(4.6, abs=0.2)  # about 100 characters, all equally likely
    assert "loss" in capsys.readouterr().out
    need_vulkan()
    assert module.main(["--device", "vulkan", "--write", "0", *options]) == pytest.approx(expected, abs=CLOSE)
