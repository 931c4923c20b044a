"""Where a run starts: --init in all its forms, and `ebmvk pretrain` with the run that continues
it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ebmvk.cli import running
from ebmvk.initialisation.start import open_start
from ebmvk.runs.folder import open_run

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = ("--steps", 4, "--sample-tokens", 0, "--quiet")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    from ebmvk.cli import pretrain

    folder = tmp_path_factory.mktemp("pretrained") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, *SHORT]
    assert pretrain.main([str(arg) for arg in args]) == 0
    return folder


def _start(folder: Path) -> dict[str, object]:
    (row,) = rows(folder, "start")
    found: dict[str, object] = row["init"]
    return found


def test_init_corpus_is_the_default_and_reports_known_tokens(trained: Path) -> None:
    start, vocabulary = _start(trained), open_run(trained, "", print).tokenizer.vocab_size
    assert start["from"] == "corpus"
    assert 0 < int(str(start["known"])) < vocabulary == start["vocabulary"]


def test_pretraining_trains_only_embeddings_and_layers(pretrained: Path) -> None:
    run = open_run(pretrained, "", print)
    model = run.model
    with torch.no_grad():
        seen = model(torch.arange(12)[None])
        torch.testing.assert_close(seen.query, model.energy.scale * seen.h, atol=0, rtol=0)
    assert not seen.aux
    assert model.decoder is None
    assert model.composition is None
    assert all(bool(block.down.weight.any()) for block in model.trunk.blocks)
    assert all(set(row["parts"]) == {"ce", "spread"} for row in rows(pretrained, "step"))


def test_pretraining_resumes_bit_for_bit(ebmvk: Command, text: Path, tiny: Path, tmp_path: Path, device: str) -> None:
    """Parts without gradients have no state in the optimiser and need none."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = ("--dataset", text, "--config", tiny, "--device", device, "--deterministic", *SHORT)
    assert ebmvk("pretrain", "--run-dir", whole, *common).status == 0
    assert ebmvk("pretrain", "--run-dir", broken, *common, "--stop-after", 2).status == 0
    said = ebmvk("pretrain", "--resume", "--run-dir", broken, "--quiet")
    assert said.status == 0, said.err
    one, two = (open_run(folder, "", print).checkpoint.model for folder in (whole, broken))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_run_without_the_compositional_term_resumes(train: Command, ebmvk: Command, tmp_path: Path) -> None:
    train(tmp_path / "run", "--no-use-compositional", *SHORT, "--stop-after", 2)
    said = ebmvk("train", "--resume", "--run-dir", tmp_path / "run", "--quiet")
    assert said.status == 0, said.err


def test_the_full_model_starts_from_the_pretrained_trunk(train: Command, pretrained: Path, tmp_path: Path) -> None:
    before, folder = open_run(pretrained, "", print), tmp_path / "run"
    train(folder, "--init", pretrained, *SHORT, "--lr", 1e-12, "--dropout", 0.2)
    run = open_run(folder, "", print)
    assert run.tokenizer.digest() == before.tokenizer.digest()
    for name in ("points", "bias", "trunk.blocks.0.up.weight", "trunk.heads.0.weight", "energy.log_scale"):
        torch.testing.assert_close(run.checkpoint.model[name], before.checkpoint.model[name], atol=1e-6, rtol=1e-4)
    assert _start(folder) == {
        "from": str(pretrained), "run": str(before.checkpoint.path), "step": before.checkpoint.step
    }  # fmt: skip


def test_init_accepts_a_checkpoint_by_its_name(pretrained: Path) -> None:
    found = open_start(str(pretrained / "ckpt_last"), print).run
    assert found is not None
    assert found.checkpoint.path == open_run(pretrained, "", print).checkpoint.path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--n-heads", 4), ("model.n_heads is 2", "--n-heads 2")),
        (("--latent-dim", 64), ("model.latent_dim is 32",)),
        (("--context-local", 2), ("model.context_local is 4",)),
        (("--vocab-size", 280), ("--vocab-size 280", "a tokenizer of 300")),
    ],
)
def test_a_run_with_other_layers_is_refused_as_a_start(
    args: tuple[str, int],
    words: tuple[str, ...],
    ebmvk: Command,
    text: Path,
    tiny: Path,
    pretrained: Path,
    tmp_path: Path,
    device: str,
) -> None:
    said = ebmvk("train", "--run-dir", tmp_path / "run", "--dataset", text, "--config", tiny, "--device", device,
                 "--init", pretrained, *args)  # fmt: skip
    assert said.status == 2
    assert all(word in said.err for word in words), said.err
    assert not (tmp_path / "run").exists()


def test_a_folder_from_the_hub_works_offline(train: Command, trained: Path, tmp_path: Path) -> None:
    """A folder like one from the hub, with the vocabulary of this text: every token has its row."""
    run = open_run(trained, "", print)
    table = torch.randn(run.tokenizer.vocab_size, 48, generator=torch.Generator().manual_seed(1))
    hub = tmp_path / "gpt"
    hub.mkdir()
    save_file({"wte.weight": table, "wpe.weight": torch.ones(9, 48)}, hub / "model.safetensors")
    run.tokenizer.save(hub / "tokenizer.json")
    train(tmp_path / "run", "--init", hub, *SHORT, "--lr", 1e-12, "--save-every", 1)
    start = _start(tmp_path / "run")
    vocabulary = run.tokenizer.vocab_size
    assert (start["whole"], start["pieces"], start["known"], start["width"]) == (vocabulary, 0, vocabulary, 48)
    mu = open_run(tmp_path / "run", "", print).model.embeddings().detach()
    centred = (table - table.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = torch.nn.functional.normalize(u[:, :32] * s[:32], dim=1).float()
    torch.testing.assert_close(mu @ mu.T, expected @ expected.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("corpsu", ("--init corpsu", "did you mean corpus?")),
        ("nothing.npy", ("no such file",)),
        ("no/such/folder", ("no such file",)),
        ("nobody/no-such-model", ("can't download the model", "--init FOLDER")),
    ],
)
def test_a_missing_start_is_refused(
    init: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert running.run(lambda: open_start(init, print) and 0) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_a_hub_name_is_downloaded_as_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert open_start("some-owner/some-model", print).table == tmp_path
    assert asked == [("some-owner/some-model", ["model.safetensors", "tokenizer.json", "config.json"])]


def test_a_tensor_of_a_file_is_named_after_a_colon(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.ones((3, 3)))
    start = open_start(f"{tmp_path}/t.npy:wte", print)
    assert (start.table, start.tensor) == (tmp_path / "t.npy", "wte")


def test_a_folder_two_levels_below_settings_is_not_a_run(tmp_path: Path) -> None:
    model = tmp_path / "models" / "gpt2"
    model.mkdir(parents=True)
    (tmp_path / "config.toml").write_text("[tool]\n", encoding="utf-8")
    start = open_start(str(model), print)
    assert (start.run, start.table) == (None, model)
