"""Exported models: writing them, reading them back, and reading them from a hub's cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard, snapshot_download

import ebmvk as package
from ebmvk.config.schema import replace
from ebmvk.errors import CheckpointError, EbmvkError, StorageError
from ebmvk.initialisation.start import open_start
from ebmvk.report.model_card import model_card
from ebmvk.runs.export import write
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.hub import read

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


def _write(run: OpenRun, to: Path) -> list[Path]:
    return write(run, to, model_card(run))


@pytest.fixture
def exported(trained: Path, ebmvk: Command, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    said = ebmvk("export", "--checkpoint", trained, "--to", folder)
    assert said.status == 0, said.err
    return folder


def _logits(path: Path) -> torch.Tensor:
    model = open_run(path, "--checkpoint", print).model
    with torch.no_grad():
        found: torch.Tensor = model.logits(model(torch.arange(24).reshape(2, 12)))
    return found


def test_an_exported_model_gives_the_same_results(exported: Path, trained: Path, text: Path, ebmvk: Command) -> None:
    files = {path.name for path in exported.iterdir()}
    assert files == {"model.safetensors", "tokenizer.json", "config.json", "README.md"}
    assert torch.equal(_logits(exported), _logits(trained))
    one, two = (package.Model.open(path, device="cpu").embed("the old king") for path in (exported, trained))
    assert torch.equal(one, two)
    said = ebmvk("evaluate", "--checkpoint", exported, "--against", trained, "--json", "--test-file", text)
    assert said.status == 0, said.err
    assert json.loads(said.out)["against"]["modes"]["none"]["nats_per_token"] == 0


@pytest.mark.parametrize("flags", [("--model", "plain"), ("--model", "tinygpt", "--use-moe"), ("--model", "infinito")])
def test_every_model_is_exported(flags: tuple[str, ...], train: Command, ebmvk: Command, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "exported"
    train(run, "--quiet", "--sample-tokens", 0, "--steps", 1, *flags)
    assert ebmvk("export", "--checkpoint", run / "checkpoints" / "step-1", "--to", folder).status == 0
    assert torch.equal(_logits(folder), _logits(run))


def test_the_card_has_exact_figures_and_names_no_local_folder(exported: Path, trained: Path) -> None:
    card, settings = (exported / "README.md").read_text(encoding="utf-8"), (exported / "config.json").read_text()
    validation = rows(trained, "end")[-1]["validation"]
    for figure in (
        f"{validation['nats_per_token']:.4f} nats",
        f"{validation['tokens']:,} tokens",
        "made-up",
        "seed 42",
    ):
        assert figure in card
    assert ModelCard(card).data.to_dict()["library_name"] == "ebmvk"
    assert str(trained.parent.parent) not in card + settings


def test_a_cached_hub_snapshot_opens_offline(exported: Path, tmp_path: Path) -> None:
    """The hub's client keeps files by digest, and a snapshot of links to them."""
    repository, commit = tmp_path / "cache" / "models--owner--name", "a" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for file in exported.iterdir():
        upload = CommitOperationAdd(file.name, str(file))  # what an upload would send
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert upload.upload_info.sha256.hex() == digest
        shutil.copy(file, repository / "blobs" / digest)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
    (repository / "refs" / "main").write_text(commit, encoding="ascii")
    found = Path(snapshot_download("owner/name", cache_dir=tmp_path / "cache", local_files_only=True))
    assert torch.equal(_logits(found), _logits(exported))


def test_a_run_can_start_from_an_exported_model(exported: Path, train: Command, ebmvk: Command, tmp_path: Path) -> None:
    train(tmp_path / "run", "--init", exported, "--steps", 1, "--quiet", "--sample-tokens", 0)
    (row,) = rows(tmp_path / "run", "start")
    assert row["init"]["run"] == str(exported)
    start = open_start(str(exported), print)
    assert start.run is not None
    said = ebmvk("train", "--resume", exported)
    assert said.status == 2
    assert "it holds no checkpoint" in said.err
    said = ebmvk("export", "--checkpoint", exported, "--to", exported)
    assert "is not an empty folder" in said.err


def test_a_model_of_another_library_still_gives_embeddings(exported: Path) -> None:
    """Such folders have a config.json, too; a run can start from their embeddings."""
    _set(exported, model_type="gpt2")
    start = open_start(str(exported), print)
    assert (start.run, start.table) == (None, exported)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings cut": (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    "settings of another library": (
        lambda p: (p / "config.json").write_text('{"model_type": "gpt2"}'),
        "not a model of ebmvk",
    ),
    "settings of a later format": (lambda p: _set(p, format=9), "format 9"),
    "an unknown setting": (lambda p: _set(p, config={"model": {"latent_dimm": 3}}), "model.latent_dimm"),
    "a setting of another type": (lambda p: _set(p, config={"model": 3}), "unknown key 'model'"),
    "another width": (lambda p: _set(p, config={"model": {"latent_dim": 64}}), "model.latent_dim was 32"),
    "weights cut": (lambda p: (p / "model.safetensors").write_bytes(b"x"), "truncated"),
    "tokenizer missing": (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
}


def _set(path: Path, **changes: object) -> None:
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(settings | changes), encoding="utf-8")


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_export_is_refused_by_name(name: str, exported: Path) -> None:
    damage, words = DAMAGE[name]
    damage(exported)
    with pytest.raises(EbmvkError) as error:
        open_run(exported, "--checkpoint", print)
    assert words in error.value.what
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize("name", ["settings cut", "another width", "weights cut"])
def test_hints_fit_an_exported_model(name: str, exported: Path) -> None:
    """It has no older checkpoint, can't be resumed, and keeps its settings in another file than a
    run.
    """
    DAMAGE[name][0](exported)
    with pytest.raises(EbmvkError) as error:
        open_run(exported, "--checkpoint", print)
    assert not any(word in str(error.value) for word in ("--resume", "an older", "config.toml"))
    assert ("config.json" if name == "another width" else "again") in error.value.hint


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("../me/secret/text.txt:1000", "text.txt:1000"),
        ("~/secret/text.txt", "text.txt"),
        ("secret/text", "text"),
        ("wikitext-2:1000", "wikitext-2:1000"),
    ],
)
def test_no_local_folder_is_published(given: str, public: str, trained: Path, tmp_path: Path) -> None:
    """Folders that no longer exist aren't named either."""
    run, names = open_run(trained, "--checkpoint", print), ("dataset", "tokenizer")
    config = replace(run.config, dict.fromkeys(names, given) | {"init": f"{tmp_path}/{public}:wte"})
    _write(dataclasses.replace(run, config=config), tmp_path / "exported")
    found = json.loads((tmp_path / "exported" / "config.json").read_text(encoding="utf-8"))["config"]
    assert [found["data"][name] for name in names] == [public, public]
    assert found["training"]["init"] == f"{public}:wte"
    assert "secret" not in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("init", "public"),
    [("corpus", "corpus"), ("owner/name", "owner/name"), ("../secret", "secret"), ("~/me/secret", "secret")],
)
def test_a_start_keeps_both_parts_only_of_a_hub_name(init: str, public: str, trained: Path, tmp_path: Path) -> None:
    run = open_run(trained, "--checkpoint", print)
    _write(dataclasses.replace(run, config=replace(run.config, {"init": init})), tmp_path / "exported")
    assert read(tmp_path / "exported")[0].training.init == public


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_exporting_fails_if_a_file_has_vanished(file: str, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    run = open_run(folder, "--checkpoint", print)
    next(folder.rglob(f"{run.checkpoint.path.name}/{file}" if file == "model.safetensors" else file)).unlink()
    with pytest.raises(CheckpointError, match=file):
        _write(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_full_disk_hints_at_exporting_again(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as error:
        _write(open_run(trained, "--checkpoint", print), tmp_path / "file" / "exported")
    assert error.value.hint.endswith("then export again")


def test_settings_survive_an_export(exported: Path, trained: Path) -> None:
    config, run = read(exported)[0], open_run(trained, "--checkpoint", print)
    assert (config.model, config.langevin, config.splats) == (run.config.model, run.config.langevin, run.config.splats)
