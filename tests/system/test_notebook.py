"""The notebook runs from beginning to end, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tinygpt.ipynb"


SMALLER = {
    '"--preset", "small"': '"--preset", "small", "--n-layers", "2", "--latent-dim", "32", "--ffn-dim", "64"',
    '["--dataset", "builtin"]': '["--dataset", "builtin:20000"]',
    ", 80": ", 12",
    ", 60": ", 12",
    '"--prompts", 20, "--max-tokens", 64': '"--prompts", 2, "--max-tokens", 8',
}
"""Replacements in the code before it runs: a smaller model, a shorter text, shorter answers."""


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    monkeypatch.setenv("TINYGPT_STEPS", "8")
    monkeypatch.setenv("TINYGPT_RUNS", str(tmp_path))
    monkeypatch.delenv("EBMVK_DATA_DIR", raising=False)  # the built-in text does
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    for written, smaller in SMALLER.items():
        assert any(written in cell["source"] for cell in code), written
        for cell in code:
            cell["source"] = cell["source"].replace(written, smaller)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("--- nucleus 0.9:") == 2
    assert "human" in printed
    assert "expert 4:" in printed
    assert printed.count("nats per character of validation") == 2
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 2
