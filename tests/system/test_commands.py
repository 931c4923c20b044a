"""The commands from end to end, and the surface they promise."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ebmvk as package
from ebmvk.cli import app, commands
from ebmvk.config import flags
from ebmvk.data.datasets import resolve
from ebmvk.data.windows import encode_split
from ebmvk.runs.folder import open_run
from ebmvk.sampling.registry import SAMPLERS

from .conftest import Command, Page, need_vulkan, rows

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = ("--n-layers", 1, "--latent-dim", 16, "--steps", 2, "--eval-tokens", 40)
"""Settings of models whose layers run on a Vulkan device: each layer takes seconds to compile."""

_FLAGS = {
    "train": """
        --size --device --seed --deterministic --no-deterministic --dataset --data-dir --include --raw --no-raw
        --keep-bom --no-keep-bom --tokenizer --end-token
        --vocab-size --seq-length --windows --stride --num-workers --model --latent-dim --n-layers --n-heads --ffn-dim
        --context-local --context-medium --context-global --use-moe --no-use-moe --moe-experts --moe-active
        --hidden-dim --dropout --use-geometric --no-use-geometric --use-compositional --no-use-compositional
        --use-splat --no-use-splat --use-memory --no-use-memory --memory-slots --gradient-checkpointing
        --no-gradient-checkpointing --decoder --knn-k --langevin-steps --langevin-levels --langevin-scheme
        --langevin-dt --langevin-gamma --langevin-T --kappa --steps --epochs --batch-size --accumulation-steps
        --learning-rate --optimizer --weight-decay --grad-clip --patience --warmup-steps --precision --lambda-denoise
        --lambda-spread --moe-balance --moe-z --lambda-phi --noise-levels --noise-unit --denoise-form --init
        --enable-soc --no-enable-soc --n-splats-init --max-splats --enable-curriculum-learning
        --no-enable-curriculum-learning --curriculum-epochs --curriculum-target-splats --soc-check-interval
        --soc-threshold --soc-history --soc-keep --splat-temperature --splat-weight-decay
        --splat-weight-decay-start --min-kappa --max-kappa --log-every --eval-every --eval-tokens --save-every
        --keep-last --keep-epochs --sample-tokens --tensorboard --no-tensorboard --run-dir --resume
        --stop-after --preset --config --dry-run --no-dry-run --profile --no-profile
        --verbose --no-verbose --quiet --no-quiet""",
    "evaluate": """
        --checkpoint --dataset --data-dir --include --raw --no-raw
        --test-file --tokenizer --split --limit --context --stride --memory
        --memory-capacity --scramble-memory --no-scramble-memory --against --against-memory --score-matching
        --no-score-matching --device --json --no-json""",
    "memory": """
        --checkpoint --splats --from-training --no-from-training --fit-on --dataset --data-dir --device --quiet
        --no-quiet""",
    "embed": """
        --checkpoint --text --file --scale --energy --no-energy --npy --json --no-json --device""",
    "compose": """
        --checkpoint --text --k --json --no-json --device""",
    "neighbors": """
        --checkpoint --text --k --json --no-json --device""",
    "prepare-corpus": """
        --input --output --separator --include --raw --no-raw --preserve-case --no-preserve-case
        --blanks --narrow --no-narrow --keep-direction --no-keep-direction --same""",
    "analyze-corpus": """
        --dataset --separator --include --raw --no-raw --tokenizer --end-token --vocab-size --data-dir --json
        --no-json""",
    "init-tokenizer": """
        --files --out --include --raw --no-raw --vocab-size""",
    "compare-decoding": """
        --checkpoint --judge --strategy --temperature --top-k --top-p --min-p --typical-p --repetition-penalty
        --no-repeat-ngram --prompts --prompt-tokens --max-tokens --sampler --seed --dataset --data-dir --device --json
        --no-json""",
    "attention": """
        --checkpoint --out --text --tokens --dataset --data-dir --device""",
    "diagnose": """
        --checkpoint --batch --report --quick --no-quick --json --no-json --dataset --data-dir --device""",
    "sweep": """
        --table --flags --folder --jobs --threads --trials --search --seed --json --no-json""",
    "export": """
        --checkpoint --to""",
    "harness": """
        --checkpoint --memory --context --stride --sampler --batch-size --device""",
    "doctor": """
        --device --checkpoint --json --no-json""",
    "certify": """
        --device --checkpoint --dataset --quick --no-quick --json --plots --seed""",
    "generate": """
        --checkpoint --prompt --prompt-file --batch-generate --no-batch-generate --tokenizer --max-tokens
        --strategy --greedy --no-greedy --temperature --top-k --top-p --min-p --typical-p
        --repetition-penalty --no-repeat-ngram --stop --sampler --memory --seed --batch-size --stream
        --no-stream --output --device --quiet --no-quiet""",
}
OTHER_NAMES = {
    "--lr": "--learning-rate", "--n-embd": "--latent-dim", "--n-layer": "--n-layers", "--n-head": "--n-heads",
    "--block-size": "--seq-length", "--corpus": "--dataset", "--outdir": "--run-dir", "--ckpt": "--checkpoint",
}  # fmt: skip
SURFACE = {
    command: [*flags.split(), *(name for name, flag in OTHER_NAMES.items() if flag in flags.split())]
    for command, flags in _FLAGS.items()
}
SURFACE["pretrain"] = SURFACE["train"]


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_has_the_promised_flags(command: str) -> None:
    module = importlib.import_module(f"ebmvk.cli.{command.replace('-', '_')}")
    assert set(SURFACE[command]) <= set(module.FLAGS)  # it may have more
    assert command in commands.COMMANDS


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_all_shows_every_flag(command: str, ebmvk: Command) -> None:
    said = ebmvk(command, "--help-all")
    assert said.status == 0
    shown = re.sub(r"--\[no-\](\S+)", r"--\1 --no-\1", said.out)
    module = importlib.import_module(f"ebmvk.cli.{command.replace('-', '_')}")
    assert [flag for flag in module.FLAGS if not re.search(rf"{flag}\b", shown)] == []


@pytest.mark.parametrize("command", ["train", "generate", "compare-decoding", "certify", "harness"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        f"import sys\nfrom ebmvk.cli import app\ntry: app.main(['{command}', '--help'])\n"
        "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"ebmvk {package.__version__}"
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"] == package.__version__


def test_train_leaves_a_complete_run_folder(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "config.toml", "tokenizer.json", "checkpoints", "latest", "best", "metrics.jsonl", "samples.txt", "report.html",
    }  # fmt: skip
    for name in ("latest", "best"):
        folder = trained / (trained / name).read_text(encoding="ascii").strip()
        files = {"model.safetensors", "state.safetensors", "soc.safetensors", "state.json"}
        assert {path.name for path in folder.iterdir()} == files


def test_metrics_have_every_step_with_its_parts_and_every_evaluation(trained: Path) -> None:
    steps, evals, ends = rows(trained, "step"), rows(trained, "eval"), rows(trained, "end")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["step"] for row in evals] == [4, 8]
    assert len(ends) == 1
    for row in steps:
        assert math.isfinite(row["loss"])
        assert row["parts"]["ce"] > 0
        assert row["tokens_per_second"] > 0
        assert row["time"].endswith("+00:00")
    for row in evals:
        validation = row["validation"]
        assert validation["ppl_token"] == pytest.approx(math.exp(validation["nats"] / validation["tokens"]))
        assert (validation["context"], validation["stride"]) == (16, 16)
        assert {level["kappa"] > 0 for level in row["score_matching"]} == {True}
        assert row["langevin"]["chains"] == 6
        assert all(row["counts"][op]["calls"] > 0 for op in ("topk", "energy_score", "langevin"))


def test_training_learns(train: Command, tmp_path: Path) -> None:
    train(tmp_path / "run", "--steps", 60, "--lr", 0.01, "--quiet", "--sample-tokens", 0, "--eval-every", 60)
    loss = [row["parts"]["ce"] for row in rows(tmp_path / "run", "step")]
    # From the unigram entropy of its letters, the made-up language falls by far more than the noise
    # of a batch.
    assert sum(loss[-5:]) / 5 < 0.75 * sum(loss[:5]) / 5


def test_evaluate_agrees_with_one_token_at_a_time(ebmvk: Command, trained: Path, text: Path, device: str) -> None:
    """An independent, slow computation of the same number: each token from its own forward pass."""
    args = ("--checkpoint", trained, "--limit", 40, "--context", 8, "--stride", 1, "--device", device, "--json")
    said = ebmvk("evaluate", *args)
    assert said.status == 0, said.err
    found = json.loads(said.out)
    run = open_run(trained, "--checkpoint", print)
    tokens = torch.from_numpy(encode_split(resolve(str(text)), "validation", run.tokenizer).tokens[:41]).long()
    nats = 0.0
    with torch.no_grad():
        for t in range(1, 41):
            seen = tokens[max(0, t - 8) : t][None]
            nats -= float(run.model.log_p_lex(run.model(seen))[0, -1, tokens[t]])
    assert (found["tokens"], found["context"], found["stride"]) == (40, 8, 1)
    assert found["nats"] == pytest.approx(nats, rel=1e-5)  # float32 log-probabilities, other batch shapes
    spelled = run.tokenizer.decode(tokens[1:])
    assert found["bytes"] == len(spelled.encode())
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)


def test_evaluate_counts_words_as_the_text_does_not_as_the_tokenizer(
    ebmvk: Command, trained: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of other text on word-level text: its ends of line are words."""
    text = " = A = \n \n one two <unk> three \n four five \n" * 3
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    words = len(text.split()) + text.count("\n")
    counts = {"wikitext-2": dict.fromkeys(("train", "validation", "test"), words)}
    monkeypatch.setattr("ebmvk.data.corpus.WIKITEXT_WORDS", counts)
    args = ("--checkpoint", trained, "--device", device, "--dataset", folder, "--json")
    found = json.loads(ebmvk("evaluate", *args, "--split", "test", "--limit", 10_000).out)
    assert (found["words"], found["bytes"], found["whole_split"]) == (words, len(text.encode()), True)
    assert found["ppl_word"] == pytest.approx(math.exp(found["nats"] / words))
    assert json.loads(ebmvk("evaluate", *args, "--limit", 9).out)["whole_split"] is False


def test_evaluate_prints_context_and_stride(ebmvk: Command, trained: Path, device: str) -> None:
    said = ebmvk("evaluate", "--checkpoint", trained, "--limit", 30, "--stride", 4, "--device", device)
    assert "context, stride       16, 4" in said.out
    assert "perplexity per word" in said.out


def test_generate_repeats_with_its_seed_and_row_by_row(ebmvk: Command, trained: Path, device: str) -> None:
    def texts(*args: Any) -> str:
        said = ebmvk("generate", "--checkpoint", trained, "--max-tokens", 6, "--device", device, "--quiet", *args)
        assert said.status == 0, said.err
        return said.out

    for sampler in SAMPLERS:
        one = texts("--sampler", sampler, "--prompt", "The cat")
        assert one.startswith("The cat")
        assert texts("--sampler", sampler, "--prompt", "The cat") == one
        assert texts("--sampler", sampler, "--prompt", "The cat", "--seed", 1) != one
        # The first of two prompts gets the same chains as alone.
        assert texts("--sampler", sampler, "--prompt", "The cat", "She").startswith(one)


def test_generate_says_how_well_its_chains_mixed(ebmvk: Command, trained: Path, device: str) -> None:
    args = ("--checkpoint", trained, "--max-tokens", 2, "--device", device)
    for sampler, words in (
        ("gibbs", "changes of the component"),
        ("tempering", "accepted exchanges"),
        ("coarse", "4 ch"),
    ):
        assert words in ebmvk("generate", *args, "--sampler", sampler).err


def test_block_gibbs_has_no_temperature(ebmvk: Command, train: Command, tmp_path: Path, device: str) -> None:
    train(tmp_path / "run", "--steps", 1, "--langevin-T", 0.5, "--sample-tokens", 0)
    args = ("--checkpoint", tmp_path / "run", "--max-tokens", 2, "--device", device, "--sampler")
    said = ebmvk("generate", *args, "gibbs")
    assert (said.status, "langevin_T 0.5" in said.err) == (2, True)
    assert ebmvk("generate", *args, "tempering").status == 0


def test_noise_levels_from_flags_to_figures(ebmvk: Command, train: Command, tmp_path: Path, device: str) -> None:
    """They are printed at the start, used in training in the score form, and in the figures of
    metrics, report and evaluate."""
    run = tmp_path / "run"
    said = train(run, "--noise-levels", 0.5, 1, "--noise-unit", "sigma", "--denoise-form", "score")
    assert "noise       sigma 0.5 (an arc of 2.78 rad by the exponential map): kappa" in said.out
    last = rows(run, "eval")[-1]["score_matching"]
    assert [level["name"] for level in last if level["name"]] == ["1/2 kappa_c", "kappa_c"]
    assert sorted(round(level["sigma"], 6) for level in last if not level["name"]) == [0.5, 1.0]
    # The loss is about 1, that of a score of zero; in the other form it would be some nats.
    assert all(0.2 < row["parts"]["denoise"] < 1.5 for row in rows(run, "step"))
    assert "unigram Bayes denoiser" in (run / "report.html").read_text(encoding="utf-8")
    args = ("--checkpoint", run, "--device", device, "--limit", 60, "--score-matching")
    assert "below it by" in ebmvk("evaluate", *args).out
    found = json.loads(ebmvk("evaluate", *args, "--json").out)["score_matching"]
    assert [level["kappa"] for level in found] == [level["kappa"] for level in last]
    for level in found:
        assert level["explained"] == pytest.approx(1 - level["loss"])
        assert level["ratio"] == pytest.approx(level["loss"] / level["unigram_loss"])
    said = ebmvk("train", "--run-dir", tmp_path / "no", "--noise-levels", 90, "--noise-unit", "angle")
    assert (said.status, "--noise-levels 90" in said.err) == (2, True)


@pytest.mark.parametrize("temperature", [0.01, 1e-300])  # the second is 0 in float32
def test_generate_at_low_temperature_takes_the_likeliest_token(
    ebmvk: Command, trained: Path, device: str, temperature: float
) -> None:
    args = ("--max-tokens", 4, "--temperature", temperature, "--device", device, "--quiet", "--prompt", "The cat")
    sampled = {
        ebmvk("generate", "--checkpoint", trained, "--sampler", "exact", "--seed", seed, *args).out for seed in (1, 2)
    }
    assert len(sampled) == 1
    run = open_run(trained, "--checkpoint", print)
    ids = [int(i) for i in run.tokenizer.encode_prompt("The cat")]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(run.model.log_p_lex(run.model(torch.tensor([ids])))[0, -1].argmax()))
    assert sampled == {run.tokenizer.decode(ids).strip("\n") + "\n"}


def test_a_named_strategy_is_its_flags_and_flags_change_it(ebmvk: Command, trained: Path, device: str) -> None:
    def text(*args: Any) -> str:
        found = ebmvk("generate", "--checkpoint", trained, "--max-tokens", 12, "--device", device, "--quiet", *args)
        assert found.status == 0
        return found.out

    flags = ("--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--repetition-penalty")
    assert text("--strategy", "combined") == text(*flags, 1.2)
    assert text("--strategy", "combined", "--repetition-penalty", 3) == text(*flags, 3)
    assert text("--strategy", "greedy") == text("--greedy", "--tokenizer", trained / "tokenizer.json")


def test_a_tokenizer_that_is_named_must_be_the_runs(
    ebmvk: Command, trained: Path, text: Path, tmp_path: Path, device: str
) -> None:
    other = tmp_path / "other.json"
    assert ebmvk("init-tokenizer", "--files", text, "--vocab-size", 280, "--out", other).status == 0
    for command in (("evaluate", "--limit", 20), ("generate", "--max-tokens", 1)):
        at = (*command, "--checkpoint", trained, "--device", device, "--tokenizer")
        assert ebmvk(*at, trained / "tokenizer.json").status == 0
        said = ebmvk(*at, other)
        assert (said.status, f"--tokenizer {other} is not the one" in said.err) == (2, True)


@pytest.mark.parametrize(
    "args",
    [
        ("--prompt", "-hola", "the cat"),
        ("--prompt", "-hola", "--prompt", "the cat"),
        ("--prompt=-hola", "--prompt", "the cat"),
        ("--prompt=-hola", "--prompt=the cat"),
    ],
)
def test_several_values_of_a_flag_and_one_that_begins_with_a_hyphen(
    ebmvk: Command, trained: Path, device: str, args: tuple[str, ...]
) -> None:
    said = ebmvk("generate", "--checkpoint", trained, "--max-tokens", 1, "--device", device, *args)
    if "-hola" in args:
        assert (said.status, "write --prompt=-hola" in said.err) == (2, True)
        said = ebmvk("generate", "--checkpoint", trained, "--seed", 3, "-hola")
        assert (said.status, "--seed=-hola" in said.err) == (2, False)  # it has its value
    else:
        told = said.out.splitlines()
        assert [line[:6] for line in told if line.startswith("--- ")] == ["--- 1:", "--- 2:"]
        assert [told[1][:5], told[told.index("") + 2][:5]] == ["-hola", "the c"]


@given(st.lists(st.tuples(st.sampled_from(["--prompt", "--seed", "--stop"]), st.lists(st.sampled_from("abc")))))
def test_values_keep_their_flags_and_their_order(groups: list[tuple[str, list[str]]]) -> None:
    """However they are given, a flag that may be repeated has them one by one, and no other flag
    changes."""
    found = list(flags.spread([part for flag, values in groups for part in (flag, *values)], ("--prompt", "--stop")))
    expected = []
    for flag, values in groups:
        alone = flag == "--seed" or not values
        expected += [flag, *values] if alone else [f"{flag}={value}" for value in values]
    assert found == expected


def test_a_command_may_be_spelled_as_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("analyze_corpus", "analyze-corpus"):
        assert app.main([name, "--dataset", "/no/such/file"]) == 2
        assert "/no/such/file" in capsys.readouterr().err


def test_report_is_one_file_with_curves_and_the_trigram(trained: Path) -> None:
    page = Page.of(trained / "report.html")
    assert page.tags.count("svg") >= 5
    assert page.outside() == []
    for words in (
        "Training loss",
        "Perplexity",
        "Energy",
        "Denoising",
        "trigram",
        "langevin_steps",
        "energy_score",
    ):
        assert words in page.text
    end = rows(trained, "end")[0]
    assert f"{end['trigram']['bits_per_byte']:.4f}" in page.text
    assert f"{end['validation']['bits_per_byte']:.4f}" in page.text


def test_builtin_text_can_be_trained_evaluated_and_continued(ebmvk: Command, tmp_path: Path, device: str) -> None:
    run = tmp_path / "run"
    size = ("--size", "nano", "--steps", 2, "--batch-size", 2, "--eval-tokens", 200, "--sample-tokens", 1)
    said = ebmvk("train", *size, "--device", device, "--run-dir", run, "--stop-after", 1)
    assert said.status == 0, said.err
    assert "documentation topics" in said.out
    assert " train --resume --run-dir" in said.out
    score = ("evaluate", "--checkpoint", run, "--split", "test", "--limit", 50, "--device", device)
    assert json.loads(ebmvk(*score, "--json").out)["split"] == "test"
    lines = ebmvk(*score).out.replace(str(run), "RUN").splitlines()
    assert sum(line.count("builtin") for line in lines) == 1
    assert "scored                the beginning of the test split" in lines
    (told,) = (line for line in lines if line.startswith("device "))
    assert device != "cpu" or told.lower().count("cpu") == 1
    assert ebmvk("generate", "--checkpoint", run, "--max-tokens", 2, "--device", device).status == 0


def test_training_on_vulkan_dispatches_there(ebmvk: Command, tiny: Path, text: Path, tmp_path: Path) -> None:
    need_vulkan()
    run = tmp_path / "run"
    said = ebmvk("train", "--device", "vulkan", "--config", tiny, "--dataset", text, "--run-dir", run, *SMALL)
    assert said.status == 0, said.err
    counts = rows(run, "end")[0]["counts"]
    assert all(counts[op]["dispatches"] > 0 for op in ("topk", "energy_score", "langevin")), counts
    assert "vulkan" in rows(run, "start")[0]["device"]


def test_a_text_read_on_vulkan_has_the_figures_of_the_processor(ebmvk: Command, train: Command, tmp_path: Path) -> None:
    need_vulkan()
    run, found = tmp_path / "run", []
    train(run, *SMALL, "--quiet", "--sample-tokens", 0)
    for where in ("vulkan", "cpu"):
        said = ebmvk("evaluate", "--checkpoint", run, "--device", where, "--limit", 30)
        assert said.status == 0, said.err
        assert ("the layers run there, too" in said.out) == (where == "vulkan")
        found.append(float(said.out.split("nats per token")[1].split()[0]))
    assert found[0] == pytest.approx(found[1], abs=2e-5)  # printed with five digits


def test_a_text_written_on_vulkan_is_that_of_the_processor(ebmvk: Command, trained: Path) -> None:
    need_vulkan()
    found = []
    for where in ("vulkan", "cpu"):
        args = ("--checkpoint", trained, "--device", where, "--sampler", "exact", "--max-tokens", 5)
        said = ebmvk("generate", *args, "--prompt", "The cat", "She")
        assert said.status == 0, said.err
        assert ("the layers run there, too" in said.err) == (where == "vulkan")
        found.append(said.out)
    assert found[0] == found[1]


# ---- separators between texts --------------------------------------------------------------------


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_texts_of_several_prompts_are_separated_on_the_stream_they_are_written_to(
    stream: tuple[str, ...], ebmvk: Command, trained: Path, device: str
) -> None:
    args = ("--checkpoint", trained, "--max-tokens", 4, "--device", device, "--sampler", "exact", *stream)
    one = ebmvk("generate", *args, "--prompt", "The cat", "--quiet").out
    both = ebmvk("generate", *args, "--prompt", "The cat", "She").out
    assert both.startswith(f"--- 1: 'The cat'\n{one}\n--- 2: 'She'\nShe")
    quiet = ebmvk("generate", *args, "--prompt", "The cat", "She", "--quiet").out
    assert quiet.startswith(f"{one}\nShe")
