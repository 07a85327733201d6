"""Steps on a second stream: which ones, what they wait for, and that nobody uses their memory meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paper_gpu import H200, PaperGpu, make_up_measurements
from small_models import save_residual
from tamis.compiler import BuildConfig, build
from tamis.compiler.planner.aside import ASIDE, aside
from tamis.compiler.planner.views import Flow
from tamis.engine.check import check_plan
from tamis.engine.plan import Plan, Step
from tamis.errors import CorruptEngine
from tamis.formats.dtype import DType

GPU = PaperGpu(H200)


def step(inputs: str, output: str, kernel: str = "cublaslt.matmul", moved_bytes: int = 1) -> Step:
    return Step(output, kernel, tuple(inputs.split()), (output,), moved_bytes=moved_bytes)


def found(*steps: Step, outputs: tuple[str, ...] = ("y",), aliases: dict[str, Step] | None = None) -> dict[str, object]:
    """The steps that run aside, by name: from which to which step, and what they wait for."""
    result = aside(Flow(steps, aliases or {}), outputs, GPU)
    if result is None:
        return {}
    for number, each in enumerate(result.flow.steps):
        assert (each.stream == ASIDE) == (number in result.spans)
    return {result.flow.steps[n].name: (*span, result.flow.steps[n].waits) for n, span in result.spans.items()}


BLOCK = (step("x", "a"), step("a", "short"), step("a", "b"), step("b", "c"), step("c short", "y"))


def test_a_shortcut_runs_beside_its_branch() -> None:
    assert found(*BLOCK) == {"short": (1, 4, (0,))}
    late = (BLOCK[0], BLOCK[2], BLOCK[3], BLOCK[1], BLOCK[4])
    assert found(*late) == {"c": (2, 4, (1,))}, "the first that may: less is hidden, which is why shortcuts come first"


def test_a_chain_has_nothing_to_run_beside() -> None:
    assert found(step("x", "a"), step("a", "b"), step("b", "y")) == {}
    views = (step("x", "a"), step("a", "short"), step("a", "b", "aten.transpose", 0), step("b short", "y"))
    assert found(*views) == {}


def test_what_allocates_or_is_an_output_stays() -> None:
    torch_conv = step("x", "a", "cudnn.torch_conv")
    torch_conv = replace(torch_conv, attributes={"fused": "relu"})
    assert found(torch_conv, *BLOCK[1:]) == {}, "its result is PyTorch's memory"
    assert found(BLOCK[0], replace(BLOCK[1], kernel="aten.linear"), *BLOCK[2:4], BLOCK[4]) != {"short": (1, 4, (0,))}
    assert "short" not in found(*BLOCK, outputs=("y", "short"))
    reshape = {"flat": step("short", "flat")}
    assert "short" not in found(*BLOCK, outputs=("y", "flat"), aliases=reshape), "an output lies in its memory"
    assert "short" in found(*BLOCK, outputs=("y", "flat"), aliases={"flat": step("y", "flat")})


def test_one_step_aside_at_a_time() -> None:
    steps = (*BLOCK[:4], step("c short", "d"), step("d", "short2"), step("d", "e"), step("e short2", "y"))
    assert found(*steps) == {"short": (1, 4, (0,)), "short2": (5, 7, (4,))}
    crossing = (step("x", "a"), step("a", "p"), step("a", "q"), step("a", "b"), step("b p", "c"), step("c q", "y"))
    assert len(found(*crossing)) == 1


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    """A whole build on paper, in whose contest the variant that comes last wins."""
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
    config = BuildConfig(device="cuda", precisions=(DType.FLOAT16,), exclude_tactics=("cudnn.torch",))
    return build(save_residual(tmp_path / "residual.onnx"), config).plan


def test_a_build_may_put_shortcuts_aside(plan: Plan) -> None:
    check_plan(plan)
    (chosen,) = (record for record in plan.engines if record.chosen)
    assert chosen.name.endswith("on two streams")
    assert {s.name for s in plan.steps if s.stream == ASIDE} == {"one.short", "two.short"}


def test_an_engine_that_forgets_to_wait_is_refused(plan: Plan) -> None:
    for number, each in enumerate(plan.steps):
        if not each.waits:
            continue
        steps = (*plan.steps[:number], replace(each, waits=()), *plan.steps[number + 1 :])
        with pytest.raises(CorruptEngine, match=r"same time|may still run"):
            check_plan(replace(plan, steps=steps))
    backwards = (replace(plan.steps[0], waits=(1,)), *plan.steps[1:])
    with pytest.raises(CorruptEngine, match="waits for step 1"):
        check_plan(replace(plan, steps=backwards))


def test_memory_of_a_step_aside_is_no_one_elses_meanwhile(plan: Plan) -> None:
    number, each = next((n, s) for n, s in enumerate(plan.steps) if s.stream == ASIDE)
    by_name = {buffer.name: buffer for buffer in plan.buffers}
    mine = by_name[each.outputs[0]]
    between = [s for n, s in enumerate(plan.steps) if each.waits[0] < n < next(
        m for m, t in enumerate(plan.steps) if number in t.waits) and n != number]  # fmt: skip
    assert between
    moved = [replace(b, offset=by_name[between[0].outputs[0]].offset) if b is mine else b for b in plan.buffers]
    with pytest.raises(CorruptEngine, match="same time"):
        check_plan(replace(plan, buffers=tuple(moved)))
