"""A checkpoint in lm-evaluation-harness, on a made-up task and offline."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ebmvk.errors import ConfigError
from ebmvk.evaluation.requests import Scorer

from .conftest import Command, need_vulkan

TASKS = {
    "choose": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{answer}}"
        metric_list: [{metric: acc}]""",
    "read": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{question}}"
        metric_list: [{metric: bits_per_byte}]""",
    "write": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{question}}"
        generation_kwargs: {until: ["."], max_gen_toks: 6}
        metric_list: [{metric: exact_match}]""",
}
DOCUMENTS: list[dict[str, Any]] = [
    {"question": "The cat sees", "choices": ["a house", "it"], "answer": 1},
    {"question": "She likes", "choices": ["fish", "paints", "a dog"], "answer": 0},
]


@pytest.mark.usefixtures("little_search")
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval, an extra, is not installed")
def test_tasks_get_the_models_answers(
    trained: Path, ebmvk: Command, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = tmp_path / "run, with a comma"
    shutil.copytree(trained, run)
    assert ebmvk("memory", "--checkpoint", run, "--splats", 0, "--device", device, "--quiet").status == 0
    data, tasks = tmp_path / "data.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    tasks.mkdir()
    for name, task in TASKS.items():
        source = f"\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\n"
        lines = "\n".join(line.strip() for line in task.splitlines())
        (tasks / f"{name}.yaml").write_text(f"task: {name}{source}{lines}\n", encoding="utf-8")
    said = ebmvk(
        *("harness", "--checkpoint", run, "--memory", "episodic", "--device", device, "--batch_size", 2),
        *("--tasks", ",".join(TASKS), "--include_path", tasks, "--output_path", tmp_path / "found", "--log_samples"),
    )
    assert said.status == 0, said.err
    assert "choose" in said.out
    own, found = Scorer.open(run, memory="episodic", device=device), {}
    for name in TASKS:
        lines = next((tmp_path / "found").rglob(f"samples_{name}_*.jsonl")).read_text(encoding="utf-8").splitlines()
        found[name] = [[answer for (answer,) in json.loads(line)["resps"]] for line in lines]
    questions = [document["question"] for document in DOCUMENTS]
    for document, answers in zip(DOCUMENTS, found["choose"], strict=True):
        wanted = own.log_likelihoods([(document["question"], f" {choice}") for choice in document["choices"]])
        assert [float(log_p) for log_p, _ in answers] == pytest.approx([log_p for log_p, _ in wanted], abs=1e-4)
    assert [float(log_p) for (log_p,) in found["read"]] == pytest.approx(own.rolling(questions))
    assert [text for (text,) in found["write"]] == own.texts(
        [(q, {"until": ["."], "max_gen_toks": 6}) for q in questions]
    )


def test_the_rolling_likelihood_matches_evaluate(trained: Path, ebmvk: Command, device: str, tmp_path: Path) -> None:
    text = "The old king likes a house. She sees fish, and a dog paints it. " * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    for how in ({}, {"context": 9, "stride": 4}):
        flags = [part for name, value in how.items() for part in (f"--{name}", value)]
        said = ebmvk(
            "evaluate",
            "--checkpoint",
            trained,
            "--test-file",
            tmp_path / "text.txt",
            "--device",
            device,
            "--json",
            *flags,
        )
        assert Scorer.open(trained, device=device, **how).rolling([text]) == pytest.approx(
            [-json.loads(said.out)["nats"]], rel=1e-9
        )


def test_a_vulkan_device_scores_and_writes_the_same_texts(trained: Path) -> None:
    need_vulkan()
    text, asked = "The old king likes a house.", [("The old king", {"max_gen_toks": 3, "until": []})]
    here, there = (Scorer.open(trained, device=device) for device in ("cpu", "vulkan"))
    tokens = len(here.tokenizer.encode_prompt(text))
    # Floats in sums of another order: 1e-5 nats for each token.
    assert there.rolling([text]) == pytest.approx(here.rolling([text]), abs=1e-5 * tokens)
    assert there.layers is not None
    assert there.layers.did()["dispatches"] > 0
    assert there.texts(asked) == here.texts(asked)
    assert there.generator.layers is not None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--tasks", "lambada"), "--checkpoint"),
        (("--checkpoint", "run", "--model_args", "checkpoint=other"), "--model-args doesn't work with"),
    ],
)
def test_the_checkpoint_names_the_model(args: tuple[str, ...], message: str, ebmvk: Command) -> None:
    said = ebmvk("harness", *args)
    assert said.status == 2
    assert message in said.err


@pytest.mark.parametrize(
    "bad", [{"memory": "all"}, {"batch_size": 0}, {"context": 0}, {"context": 4, "stride": 5}], ids=str
)
def test_values_out_of_range_are_refused(bad: dict[str, Any], trained: Path) -> None:
    with pytest.raises(ConfigError, match=str(list(bad.values())[-1])):
        Scorer.open(trained, **bad)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_extra_the_error_says_what_to_install(ebmvk: Command) -> None:
    said = ebmvk("harness", "--checkpoint", "run", "--tasks", "x")
    assert said.status == 2
    assert "./run setup --extra harness" in said.err
