"""The benchmarks run at tiny sizes, write the promised keys, and give peers the same work as
ours."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import (
    approximate,
    experiments,
    gradients,
    memory,
    models,
    monitor,
    ops,
    peers,
    scaling,
    torch_chains,
    traffic,
)
from bench.measure import chain_problem, unit
from ebmvk.cli import train
from ebmvk.data.windows import TokenStream
from ebmvk.engine import select
from ebmvk.engine.operations import OPERATIONS
from ebmvk.errors import ConfigError, DeviceError
from ebmvk.splats.store import SplatStore
from ebmvk.sweeps import planned as runs

pytestmark = pytest.mark.usefixtures("no_pictures")

N, D, K, B = 60, 12, 5, 7


def ran(command: Any, tmp_path: Path, *args: str, times: str = "--repeats") -> dict[str, Any]:
    path = tmp_path / "figures" / "out.json"  # the folder is made
    command.main([*args, times, "1", "--json", str(path)])
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    facts = result["device"]
    assert facts["command"].startswith(f"python -m {command.__name__} ")
    assert {"device", "processor", "processors", "torch", "torch_threads", "commit", "cuda"} <= set(facts)
    return result


@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_ops_measures_the_whole_table(device: str, tmp_path: Path) -> None:
    try:
        select(device)
    except DeviceError as error:
        pytest.skip(f"no {device}: {error.what}")
    result = ran(ops, tmp_path, "--quick", "--device", device)
    sphere = {"projx", "proju", "expmap", "logmap", "transp", "dist"}
    others = {"topk", "energy_score", "energy_score_backward", "langevin gbaoab", "langevin ghmc", "vmf_sample"}
    assert {row["op"] for row in result["operations"]} == sphere | others | {"accumulate"}
    for row in result["operations"]:
        assert row["median_s"] > 0
        assert row["roofline_percent"] > 0
    ceilings = result["ceilings"]
    assert ceilings["copy_gbs"] > 0
    assert ceilings["product_gflops"] > 0
    if device == "vulkan":
        assert ceilings["source"].startswith("Vulkan on the device")
        assert ceilings["arithmetic_gflops"] > 0
        assert {"driver", "limits", "heaps", "features"} <= set(result["device"]["vulkan"])
    else:
        assert {"kernels", "threads"} <= set(result["device"])


def test_gradients_writes_a_ratio_for_each_kind_of_candidates(tmp_path: Path) -> None:
    try:
        select("vulkan")
    except DeviceError as error:
        pytest.skip(f"no vulkan: {error.what}")
    result = ran(gradients, tmp_path, "--quick")
    assert result["shape"]["points"] == [30, 200]
    for kind in ("same", "spread", "host"):
        seconds = [result["seconds"][f"{kind} {n}"]["median_s"] for n in (30, 200)]
        assert result["ratios"][kind] == pytest.approx(seconds[1] / seconds[0])


def test_gradients_refuses_a_backend_without_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gradients.main(["--quick", "--device", "cpu"])
    assert "use --device vulkan" in capsys.readouterr().err


def test_traffic_counts_each_operation_with_arrays_and_with_tensors(tmp_path: Path) -> None:
    """With tensors, only the sampler's tokens and entropies come down, and single numbers of
    results."""
    try:
        select("vulkan")
    except DeviceError as error:
        pytest.skip(f"no vulkan: {error.what}")
    path = tmp_path / "traffic.json"
    traffic.main(["--quick", "--json", str(path)])
    calls = json.loads(path.read_text(encoding="utf-8"))["calls"]
    on_host, on_device = (
        {row["operation"]: row for row in calls if row["arguments"] == where} for where in ("host", "device")
    )
    assert set(on_host) == set(on_device) == {*OPERATIONS, "sampler"}
    for name, row in on_device.items():
        if name == "sampler":
            assert row["bytes_down"] == 8 * traffic.QUICK.rows
        else:
            assert row["submissions"] == 1, name
            assert row["bytes_down"] <= 32, name
        assert row["bytes_down"] < on_host[name]["bytes_down"], name


def test_peers_writes_its_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler here\nand more")  # as if it were missing; compiling takes long

    monkeypatch.setattr(torch_chains, "compiled_runner", fails)
    result = ran(peers, tmp_path, "--quick")
    ratios = {
        "topk_vs_faiss": "faiss",
        "langevin_vs_torch_regather": "torch",
        "langevin_vs_torch_best": "torch",
        "langevin_vs_torchebm": "torchebm",
    }
    expected = {name for name, module in ratios.items() if importlib.util.find_spec(module)}
    assert expected <= set(result["ratios"])
    assert all(math.isfinite(value) and value > 0 for value in result["ratios"].values())
    assert result["langevin"]["missing"]["torch_compile"] == "RuntimeError: no compiler here"
    assert "without torch_compile: RuntimeError: no compiler here" in capsys.readouterr().out
    assert set(result["chains"]["seconds_of_run"]) == {"1", "10", "200"}
    assert len(result["chains"]["seconds_per_chain_step"]) > 1
    for row in result["topk_over_points"]:
        assert row["ns_per_pair"] > 0
        assert row["bytes_per_point"] >= 4 * 64  # float32 rows of 64


def test_approximate_writes_recall(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    result = ran(approximate, tmp_path, "--points", "800", "--dimension", "16", "--queries", "20", "--k", "5")
    found = [row["recall"] for row in result["approximate"]]
    assert found == sorted(found)
    assert 0.5 < found[-1] <= 1
    assert result["exact"]["median"] > 0


@pytest.mark.usefixtures("forked_runs")
def test_experiments_train_once_and_compare_with_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EBMVK_COMMIT", "of today")
    args = ("--quick", "--table", "plain", "--seeds", "7", "--threads", "1", "--folder", str(tmp_path / "runs"))
    args = (*args, "--flags", "--lr 1e-3")
    path = tmp_path / "out.json"
    experiments.main([*args, "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"command", "commit", "torch"} <= set(result["device"])
    assert {run["commit"] for run in result["runs"]} == {"of today"}
    ebm, plain = result["runs"]
    assert (ebm["row"], plain["row"], plain["threads"], plain["steps"]) == ("ebm", "plain", 1, 6)
    assert plain["parameters"] < ebm["parameters"]
    assert plain["command"].endswith("--lr 1e-3 --seed 7 --quiet --sample-tokens 0 --model plain")
    gap = plain["nats_per_token"] - ebm["nats_per_token"]
    assert [row["difference"] for row in result["rows"]] == [None, {"mean": gap, "std": None, "seeds": 1}]
    assert f"{gap:+.4f}" in capfd.readouterr().out

    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    experiments.main([*args, "--json", str(path)])
    assert json.loads(path.read_text(encoding="utf-8"))["runs"] == result["runs"]
    with pytest.raises(ConfigError, match="was trained with"):  # --quick is another size
        experiments.main([*args[1:]])


@pytest.mark.usefixtures("forked_runs")
def test_rows_of_equal_time_take_as_many_steps_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.3, 0.1])
    monkeypatch.setattr(experiments, "median", lambda _: next(times))
    args = ("--quick", "--table", "plain", "--seeds", "7", "--threads", "1", "--folder", str(tmp_path / "runs"))
    path = tmp_path / "out.json"
    experiments.main([*args, "--equal-time", "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["step_seconds"] == {"ebm": 0.3, "plain": 0.1}
    assert [run["steps"] for run in result["runs"]] == [6, 18]
    assert "ebm: 300.0 ms per step" in capfd.readouterr().out


def test_experiments_are_paired_by_seed() -> None:
    """Seeds differ by much, but change the difference of two rows by little. The last row lacks a
    seed."""
    nats = {("a", 1): 3.0, ("a", 2): 4.0, ("a", 3): 5.0, ("b", 1): 3.5, ("b", 2): 4.6, ("b", 3): 5.7, ("c", 3): 5.0}
    found = {at: {**dict.fromkeys(experiments.FIGURES, 1.0), "nats_per_token": value} for at, value in nats.items()}
    a, b, c = experiments.summary(["a", "b", "c", "d"], [1, 2, 3], found)
    assert a["nats_per_token"] == {"mean": 4.0, "std": 1.0}
    assert b["difference"] == pytest.approx({"mean": 0.6, "std": 0.1, "seeds": 3})
    assert c["difference"] == {"mean": 0.0, "std": None, "seeds": 1}
    assert "4.0000 ± 1.0000" in experiments.printed([a, b, c])


@pytest.mark.parametrize("name", experiments.TABLES)
def test_rows_of_experiments_are_valid_training_flags(name: str) -> None:
    for flags in experiments.TABLES[name].values():
        assert {flag for flag in flags.split() if flag.startswith("--")} <= set(train.FLAGS)


@pytest.mark.usefixtures("little_search")
def test_memory_measures_what_splats_are_worth(trained: Path, tmp_path: Path) -> None:
    result = ran(memory, tmp_path, "--quick", "--checkpoint", str(trained), "--device", "cpu", times="--seeds")
    assert min(result["tuned_tokens"], result["scored_tokens"]) > 50
    by_number, merging = result["gain_over_splats"], result["merging"]
    assert [row["asked"] for row in by_number] == [20, 60]
    assert all(row["build_s"] > 0 and row["splats"] <= row["asked"] for row in by_number)
    ways = ["description length", "angle", "near pairs at random", "any pairs at random"]
    assert [row["way"] for row in merging] == ways
    assert {row["splats"] for row in merging} == {30}
    for row in by_number:
        assert row["gain"] < 0
        assert row["scrambled_gain"] > row["gain"]
        assert row["gain"] - row["calibrated_gain"] == pytest.approx(row["gain_over_calibrated"])
        assert row["scrambled_gain_fitted_anew"] < row["scrambled_gain"]
        assert 0 <= row["coverage"] <= 1


def test_monitor_compares_steps_of_one_run(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    monitor.main(["--repeats", "3", "--batch-size", "1", "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["device"]["command"].startswith("python -m bench.monitor ")
    assert result["repeats"] == 3
    assert set(result["steps"]) == {"monitored", "bare"}
    assert result["overhead"]["low"] <= result["overhead"]["median"] <= result["overhead"]["high"]
    assert 0 < result["recording"]["mean"] < result["steps"]["monitored"]["median"]


def test_scaling_is_predicted_for_every_size_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    for size, model in (("nano", "ebm"), ("base", "tinygpt")):
        scaling.main(["--size", size, "--model", model, "--json", str(path)])
        result = json.loads(path.read_text(encoding="utf-8"))
        one, two, *_, most = result["predicted"]
        assert [row["processes"] for row in result["predicted"]] == list(scaling.NODES)
        assert one["weak"] == one["strong"] == 1
        assert one["communication_s"] == one["reduced_bytes"] == one["lookup_bytes"] == 0
        # A ring of two sends everything once.
        assert two["reduced_bytes"] == result["load"]["gradients"] + result["load"]["sample"]
        assert most["store_bytes"] == one["store_bytes"] / 64
        assert 0 < two["strong"] < 1
        assert most["strong"] is None  # the batch has fewer windows than processes
        assert 0 < most["weak"] < two["weak"] < 1
        assert f"{result['load']['parameters']:,} parameters" in capsys.readouterr().out


def test_halves_are_whole_documents() -> None:
    stream = TokenStream("x", np.arange(100), np.array([0, 10, 55, 70]), False)
    first, other = memory.halves(stream)
    assert (len(first), first.starts.tolist()) == (55, [0, 10])
    assert (other.tokens.tolist(), other.starts.tolist()) == (list(range(55, 100)), [0, 15])
    first, other = memory.halves(TokenStream("x", np.arange(9), np.array([0]), False))
    assert (len(first), len(other), other.starts.tolist()) == (4, 5, [0])


def test_models_compares_the_plain_way_with_ours(tmp_path: Path) -> None:
    result = ran(models, tmp_path, "--quick")
    assert [row["compared"] for row in result["ratios"]] == list(models.COMPARED)
    for row in result["ratios"]:
        assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"])


def test_random_merging_keeps_mass_and_reaches_its_size() -> None:
    states, tokens = unit(50, D, 1), torch.arange(50) % 5
    store = SplatStore.gather(states, tokens, torch.arange(50), vocab_size=5, beta=0.1, kappa=(9.0, 9.0))
    for target in (40, 11, 1):
        merged = memory.any_pairs(store, target, seed=3)
        assert merged.n == target
        assert float(merged.mass.sum()) == 50


def test_the_torch_implementations_we_time_against_compute_our_scores() -> None:
    """Runs on the CPU; on CUDA the same code gets another `device`."""
    rows, p, backend = unit(N, D, 1), chain_problem(B, K, N, D), select("reference")
    lists = (p.ids, p.logw, p.kappa, p.log_background)
    ours = backend.energy_score(p.x, backend.points(rows), *lists)
    peer = torch_chains.score(p.x, rows[p.ids], *lists[1:])
    torch.testing.assert_close(peer, ours.score, rtol=1e-4, atol=1e-4)
    energy = torch_chains.mixture_energy(p, rows, "cpu")(p.x)
    torch.testing.assert_close(energy, ours.energy, rtol=1e-5, atol=1e-5)
    torch.manual_seed(1)
    once = torch_chains.runner(p, rows, 3, regather=False, device="cpu")()
    torch.manual_seed(1)
    regathered = torch_chains.runner(p, rows, 3, regather=True, device="cpu")()
    for one, other in zip(once, regathered, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(once[0].norm(dim=1), torch.ones(B))


def test_torch_topk_is_ours() -> None:
    rows, queries, backend = unit(N, D, 1), unit(B, D, 2), select("reference")
    ids = peers.torch_topk(rows, queries, K, "cpu")()
    assert torch.equal(ids, backend.topk(queries, backend.points(rows), K).ids)


def test_torchebm_takes_every_step() -> None:
    """Its runner counts the gradients and raises if their number isn't that of the steps."""
    pytest.importorskip("torchebm")
    rows, p = unit(N, D, 1), chain_problem(B, K, N, D)
    for make in (torch_chains.torchebm_runner, torch_chains.torchebm_shared_runner):
        out = make(p, rows, 4)()
        assert out.shape == (B, D)
        assert bool(torch.isfinite(out).all())
        assert not torch.equal(out, p.x)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--model infinito --memory-slots 4", "--model tinygpt --use-moe"])
def test_runs_that_are_killed_end_in_the_bits_of_one_left_alone(flags: str, tmp_path: Path) -> None:
    for how in (("--kills", "40"), ("--changes", "--every", "3")):
        command = [sys.executable, "-m", "bench.kills", "--json", str(tmp_path / "kills.json"), "--flags", flags, *how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / "kills.json").read_text(encoding="utf-8"))
        assert found["kills"] >= 40
        assert found["whole"] == found["runs"]
        assert found["lost"] <= 2
