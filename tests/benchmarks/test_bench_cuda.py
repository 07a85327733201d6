"""bench_cuda.py without a GPU: options, budget, merging, processes that break, and a whole run on the CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench_cuda
import models
from bench_cuda import CASES, Outcome, failed_row, measure, parse, problem_of, run_all
from compile_cache import CompileCache
from cuda_case import Job, awaited, export_all, model_file, onnx_file, run_case
from cuda_contestants import Case, Setting, compress_linears, eager, for_torch, is_two_of_four, reference, stored
from cuda_race import Contestant, Cpu
from gpu_state import gpu_state, short_name
from results import command_line
from tables import gpu_table
from tamis.engine import DeviceState

pytestmark = pytest.mark.usefixtures("exporter_registry")

MLP = Case("small-mlp-b4", "small-mlp", 4)


def job(folder: Path, **changes: Any) -> Job:
    plain = Job(
        case=MLP, precision="float32", impls=("torch-eager", "x", "y"), excluded=(), rounds=5, seconds=100.0,
        device="cpu", folder=folder, report=folder / "report.json", timing_cache=folder / "t.json",
        compile_cache=None, build_seconds=1.0, level=0,
    )  # fmt: skip
    return replace(plain, **changes)


def good_row(impl: str, us: float = 10.0) -> dict[str, Any]:
    return {**failed_row(job(Path()), impl, ""), "median_us": us, "n": 5, "note": "", "max_rel_error": 0.0}


# --- options --------------------------------------------------------------------------------------------------


def test_all_cases_run_in_the_order_of_importance_unless_some_are_named() -> None:
    assert parse([]).case == list(CASES) and len(CASES) == 12
    assert all(models.get(case.model) for case in CASES)
    assert [case.name for case in parse(["--case", "dlrm-b2048", "--case", "resnet50-b1"]).case] == [
        "dlrm-b2048",
        "resnet50-b1",
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "4"], ["--case", "nothing"], ["--impl", "nothing"], ["--device", "cpu"], ["--precompile", "2"]],
)
def test_senseless_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)


def test_the_command_in_the_results_names_no_folder_of_the_machine() -> None:
    arguments = ["/a/b/bench_cuda.py", "--output", "/a/c/x.json", "--timing-cache=/a/d/t.json", "--budget", "5"]
    assert command_line(arguments) == "benchmarks/bench_cuda.py --output x.json --timing-cache=t.json --budget 5"


# --- the budget and the results file --------------------------------------------------------------------------


def test_what_does_not_fit_is_not_run_and_listed(tmp_path: Path) -> None:
    now, output = [0.0], tmp_path / "r.json"
    options = parse(["--budget", "250", "--output", str(output)])

    def launch(job: Job) -> Outcome:
        assert job.seconds == 250 - now[0]
        now[0] += 100
        return Outcome(
            {"rows": [{**good_row("tamis"), "case": job.case.name}], "not_run": {"torch.compile": "slow"}}, ""
        )

    missing = run_all(options, output, tmp_path, {"gpu": "G"}, launch, lambda: now[0])
    content = json.loads(output.read_text())
    assert [row["case"] for row in content["rows"]] == [case.name for case in CASES[:3]]
    assert [name for name in missing if " " not in name] == [case.name for case in CASES[3:]]
    assert content["meta"]["not_run"] == missing and missing[f"{CASES[0].name} torch.compile"] == "slow"
    assert content["meta"]["gpu"] == "G"


def test_a_later_run_of_one_implementation_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    output, options = tmp_path / "r.json", parse(["--case", "dlrm-b2048"])
    rows = [[good_row("torch.compile"), good_row("tamis", 9.0)], [good_row("tamis", 8.0)], []]
    for batch in rows:
        run_all(options, output, tmp_path, {}, lambda job, batch=batch: Outcome({"rows": batch}, ""))
    found = {row["impl"]: row["median_us"] for row in json.loads(output.read_text())["rows"]}
    assert found == {"torch.compile": 10.0, "tamis": 8.0}


def test_cases_are_compiled_side_by_side_first(tmp_path: Path) -> None:
    names = ("dlrm-b2048", "resnet50-b1", "vit-b16-b64")
    cache, calls = tmp_path / "kept", list[tuple[str, tuple[str, ...]]]()
    cache.mkdir()
    (cache / "resnet50-b1-float16.artifacts").write_bytes(b"x")
    arguments = [word for name in names for word in ("--case", name)]
    options = parse([*arguments, "--compile-cache", str(cache), "--precompile", "2"])

    def launch(job: Job) -> Outcome:
        calls.append((job.case.name, job.impls))
        return Outcome({"rows": [good_row("tamis")]}, "")

    run_all(options, tmp_path / "r.json", tmp_path, {}, launch)
    compiled = ("torch.compile",)
    assert sorted(calls[:2]) == [("dlrm-b2048", compiled), ("vit-b16-b64", compiled)]
    assert [name for name, _ in calls[2:]] == list(names) and compiled not in [impls for _, impls in calls[2:]]


# --- processes that break -------------------------------------------------------------------------------------


def test_a_process_that_breaks_is_started_again_without_the_culprit(tmp_path: Path) -> None:
    tries: list[tuple[str, ...]] = []

    def launch(job: Job) -> Outcome:
        tries.append(job.excluded)
        if "x" not in job.excluded:
            return Outcome({"rows": [good_row("torch-eager", 1.0)], "working_on": "x"}, "SIGSEGV: oops")
        if "y" not in job.excluded:
            return Outcome({"rows": [], "working_on": "y", "reason": "illegal access"}, "exit code 1: Traceback")
        return Outcome({"rows": [good_row("torch-eager", 2.0)]}, "")

    rows = {row["impl"]: row for row in measure(job(tmp_path), launch, math.inf)["rows"]}
    assert tries == [(), ("x",), ("x", "y")]
    assert rows["torch-eager"]["median_us"] == 2.0
    assert rows["x"]["note"] == "failed: SIGSEGV: oops" and rows["x"]["n"] == 0 and rows["x"]["max_rel_error"] == 1e30
    assert rows["y"]["note"] == "failed: illegal access"


def test_rows_survive_a_process_that_cannot_be_helped(tmp_path: Path) -> None:
    nobody = measure(job(tmp_path), lambda _: Outcome({"rows": [good_row("a")], "working_on": ""}, "bad"), math.inf)
    assert [row["impl"] for row in nobody["rows"]] == ["a"] and nobody["not_run"] == {"the rest": "bad"}
    late = measure(
        job(tmp_path), lambda _: Outcome({"rows": [good_row("a")], "working_on": "x"}, "slow"), 50.0, lambda: 45.0
    )
    assert {row["impl"] for row in late["rows"]} == {"a", "x"} and "no time" in late["not_run"]["the rest"]


def test_how_a_process_ended_is_said_in_words() -> None:
    assert problem_of(0, "warning", 1.0) == ""
    assert problem_of(None, "", 30.0) == "no result within 30 s"
    assert problem_of(-11, "", 1.0) == "SIGSEGV: nothing on stderr"
    assert problem_of(1, "Traceback\n  x\nValueError: bad\n\n", 1.0) == "exit code 1: ValueError: bad"


# --- a case ---------------------------------------------------------------------------------------------------


def made_up(setting: Setting, impl: str, scale: float) -> Contestant:
    good = eager(setting).replays[0]
    return Contestant(impl, setting.precision, "dense", [lambda: [output * scale for output in good()]])


def out_of_memory(setting: Setting) -> Contestant:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_case_gives_a_row_for_each_contestant_whatever_becomes_of_it(tmp_path: Path) -> None:
    export_all([MLP], "float32", tmp_path, onnx=False)
    makers = (
        ("torch-eager", eager),
        ("x", lambda setting: made_up(setting, "x", -1.0)),
        ("y", out_of_memory),
        ("excluded", out_of_memory),
        ("not asked for", out_of_memory),
    )
    run_case(job(tmp_path, impls=("torch-eager", "x", "y", "excluded"), excluded=("excluded",)), makers)
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["impl"]: row for row in report["rows"]}
    assert list(rows) == ["torch-eager", "x", "y"] and report["working_on"] == ""
    assert rows["torch-eager"]["n"] == 25 and rows["torch-eager"]["p10_us"] <= rows["torch-eager"]["median_us"]
    assert rows["torch-eager"]["flops"] == 2 * 4 * 3 * 128 * 128
    assert rows["x"]["note"].startswith("failed: wrong outputs") and rows["x"]["max_rel_error"] == 2.0
    assert rows["y"]["note"].startswith("failed: OutOfMemoryError") and rows["y"]["max_rel_error"] == 1e30


def test_compiling_does_not_start_without_the_time_for_it(tmp_path: Path) -> None:
    export_all([MLP], "float32", tmp_path, onnx=False)
    slow = replace(MLP, compile_seconds=1000)
    run_case(
        job(tmp_path, case=slow, impls=("torch-eager", "torch.compile")),
        (("torch-eager", eager), ("torch.compile", out_of_memory)),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["impl"] for row in report["rows"]] == ["torch-eager"]
    assert "1000 s" in report["not_run"]["torch.compile"]


def test_a_model_that_cannot_be_exported_is_not_waited_for(tmp_path: Path) -> None:
    nothing = Case("nothing", "nothing", 1)
    export_all([nothing, MLP], "float32", tmp_path, onnx=True)
    with pytest.raises(RuntimeError, match="no model 'nothing'"):
        awaited(model_file(tmp_path, nothing), tmp_path, nothing)
    assert awaited(onnx_file(tmp_path, MLP), tmp_path, MLP).is_file()
    with pytest.raises(RuntimeError, match="has not written"):
        awaited(tmp_path / "other", tmp_path, MLP, limit=0.0)


def test_exports_have_ports_in_the_precision(tmp_path: Path) -> None:
    import onnx

    export_all([MLP], "float16", tmp_path, onnx=True)
    graph = onnx.load(onnx_file(tmp_path, MLP)).graph
    kinds = {entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT16}


# --- PyTorch's side -------------------------------------------------------------------------------------------


def setting(name: str, precision: str, tmp_path: Path) -> Setting:
    spec, module = models.build(name)
    dtype = torch.float32 if precision == "float32" else getattr(torch, precision)
    return Setting(
        case=Case(name, name, 2), precision=precision, machine=Cpu(), spec=spec, module=module,
        inputs=stored(spec.inputs(2), dtype), onnx=lambda: tmp_path, timing_cache=tmp_path / "t", build_seconds=1.0,
        level=0, compile_cache=CompileCache(None),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["small-mlp", "small-resnet50", "small-bert", "small-vit", "small-detector"])
def test_pytorch_agrees_with_its_reference_in_both_precisions(name: str, tmp_path: Path) -> None:
    from cuda_race import check

    for precision in ("float32", "bfloat16"):
        given = setting(name, precision, tmp_path)
        references, flops = reference(given)
        one = eager(given)
        check(one, references, given.machine)
        assert one.failure == "" and flops > 0
        assert all(output.dtype == given.dtype for output in one.replays[0]())


def test_pytorch_gets_fused_attention_and_images_with_channels_innermost(tmp_path: Path) -> None:
    assert for_torch(setting("small-bert", "bfloat16", tmp_path)).bert.config._attn_implementation == "sdpa"
    network = for_torch(setting("small-resnet50", "bfloat16", tmp_path))
    weights = [p for p in network.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_only_two_of_four_weights_are_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = torch.tensor([[0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0]])
    assert is_two_of_four(pruned) and not is_two_of_four(pruned + 1) and not is_two_of_four(torch.zeros(2, 6))
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight.clone())
    network = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Linear(8, 1))
    network[0].weight.data = pruned
    assert compress_linears(network) == (2, 1, "")


# --- the GPU's state, and the table ---------------------------------------------------------------------------


def test_the_state_of_the_gpu_is_read_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_state.read_state", lambda: None)
    assert gpu_state() == ""
    monkeypatch.setattr("gpu_state.read_state", lambda: DeviceState(1980, 3201, 626.4, 700, 51, False, False))
    assert gpu_state() == "1980 MHz, 626 W of 700 W, 51 C"
    assert short_name("NVIDIA H200") == "h200" and short_name("NVIDIA GeForce RTX 4090") == "rtx-4090"


def test_the_table_gives_the_goal_ratios(tmp_path: Path) -> None:
    times = (("torch-eager", 9000.0), ("torch.compile", 4500.0), ("tamis-dense", 3000.0), ("tamis", 2000.0))
    rows = [{**good_row(impl, us), "case": "net-b1", "sparsity": "2:4"} for impl, us in times]
    rows += [{**good_row("torch-semi-structured", 1.0), "case": "net-b1", "note": "failed: x"}]
    meta = {"gpu": "GPU", "driver": "1", "versions": {"torch": "2"}, "date": "2000-01-01"}
    (tmp_path / "cuda-models-x.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    text = gpu_table(tmp_path)
    assert "GPU, driver 1; torch 2; 2000-01-01." in text
    lines = text.splitlines()[2:]
    assert lines[0].split(" | ")[2:4] == ["PyTorch eager", "torch.compile"]  # nobody ran as PyTorch 2:4
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    assert lines[2] == "| net-b1 | float32 | 9 ms | 4.5 ms | 3 ms | 2 ms | 2:4 | 1.50 | 1.50 | 2.25 |"
    assert len(lines) == 3


def test_a_column_stays_in_the_table_if_one_line_has_a_value(tmp_path: Path) -> None:
    rows = [{**good_row(impl), "case": case} for case in ("a-b1", "b-b1") for impl in ("torch-eager", "tamis")]
    rows += [{**good_row("torch.compile", 30.0), "case": "b-b1"}]
    meta = {"gpu": "GPU", "driver": "1", "versions": {}, "date": "2000-01-01"}
    (tmp_path / "cuda-models-x.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    header, _, first, second = gpu_table(tmp_path).splitlines()[2:]
    columns = ["model", "precision", "PyTorch eager", "torch.compile", "Tamis", "Tamis runs", "best peer / Tamis"]
    assert header == f"| {' | '.join(columns)} |"
    assert first.split(" | ")[2:5] == ["10.0 us", "", "10.0 us"]
    assert second.split(" | ")[2:5] == ["10.0 us", "30.0 us", "10.0 us"]


@pytest.mark.slow
def test_a_whole_run_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "trial.json"
    command = [sys.executable, bench_cuda.__file__, "--device", "cpu", "--precision", "float32", "--level", "0"]
    command += ["--case", "small-mlp-b4", "--impl", "torch-eager", "--impl", "tamis-dense", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["impl"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows.keys() == {"torch-eager", "tamis-dense"}
    assert all(row["n"] == 35 and row["median_us"] > 0 and row["max_rel_error"] < 1e-3 for row in rows.values())
