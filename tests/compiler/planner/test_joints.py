"""Pieces of a Concat that are written in place: which ones, what is left to copy, and that memory and order hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paper_gpu import H200, PaperGpu, make_up_measurements
from small_models import save_joint
from tamis.compiler import BuildConfig, build
from tamis.compiler.planner.joints import aligned_by_joins, joined_in_place
from tamis.compiler.planner.views import Flow
from tamis.engine.check import check_plan
from tamis.engine.plan import Format, Plan, Step
from tamis.formats.dtype import DType

HALF = Format(DType.FLOAT16, "channels_last")
LENGTHS = {"a": 16, "b": 24, "c": 8, "odd": 12, "x": 8}
SHAPES = {**{name: ((2, length, 5, 4), HALF) for name, length in LENGTHS.items()}, "w": ((2, 99, 5, 4), HALF)}


def writer(output: str, *inputs: str, **attributes: Any) -> Step:
    numbers = [["in", 0], ["out", 0], ["int", LENGTHS[output]], ["int", 0], ["int", 7]]
    return Step(output, "cuda.gemm", inputs or ("x",), (output,), ("cubin",),
                {"arguments": numbers, "place": 2} | attributes)  # fmt: skip


def join(*pieces: str, output: str = "w") -> Step:
    inputs = tuple(dict.fromkeys(pieces))
    arguments = [["out", 0], ["int", 1], *(["in", inputs.index(piece)] for piece in pieces), ["null", 0], ["int", 5]]
    joins = [[inputs.index(piece), LENGTHS[piece]] for piece in pieces]
    return Step(output, "cuda.concat", inputs, (output,), ("cubin",), {"arguments": arguments, "joins": joins},
                moved_bytes=1000)  # fmt: skip


def joined(*steps: Step, outputs: tuple[str, ...] = ("w",), aliases: dict[str, Step] | None = None) -> list[Step]:
    return list(joined_in_place(Flow(steps, aliases or {}), SHAPES, outputs).steps)


def placed(step: Step) -> list[int]:
    return [number for _, number in step.attributes["arguments"][2:4]]


def test_no_step_is_left_where_all_pieces_are_written() -> None:
    first, second = joined(writer("b"), writer("a"), join("a", "b"))
    assert (first.name, second.name) == ("b", "a")
    assert first.outputs == second.outputs == ("w",)
    assert first.inputs == ("x",) and second.inputs == ("x", "w"), "the second leaves what the first wrote"
    assert placed(first) == [40, 16] and placed(second) == [40, 0]
    assert first.attributes["arguments"][4] == ["int", 7]


def test_what_others_compute_is_copied_between_them() -> None:
    first, second, last = joined(writer("a"), writer("c"), join("a", "x", "c"))
    assert (first.outputs, second.outputs, last.outputs) == (("w",), ("w",), ("w",))
    assert last.inputs == ("x", "w")
    assert last.attributes["arguments"] == [
        ["out", 0], ["int", 1], ["null", 0], ["in", 0], ["null", 0], ["null", 0], ["int", 5]
    ]  # fmt: skip
    assert last.moved_bytes == 250


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((writer("a"), replace(join("a", "x"), attributes={})), id="along another axis"),
        pytest.param((writer("odd"), join("odd", "x")), id="lengths that are no multiple of eight"),
        pytest.param((writer("a"), writer("b", "a"), join("x", "a")), id="someone else reads it"),
        pytest.param((writer("a"), join("a", "a")), id="it comes twice"),
        pytest.param((replace(writer("a"), outputs=("a", "b")), join("a", "x")), id="a step with two results"),
        pytest.param((replace(writer("a"), attributes={}), join("a", "x")), id="a kernel that has no place"),
        pytest.param((join("x", "c"),), id="inputs of the engine"),
    ],
)
def test_what_stays_as_it_is(steps: tuple[Step, ...]) -> None:
    assert joined(*steps) == list(steps)


def test_outputs_aliases_and_other_formats_stay() -> None:
    steps = (writer("a"), join("a", "x"))
    assert joined(*steps, outputs=("w", "a")) == list(steps)
    view = Step("flat", "aten.reshape", ("a",), ("flat",))
    assert joined(*steps, aliases={"flat": view}) == list(steps)
    shapes = {**SHAPES, "a": (SHAPES["a"][0], Format(DType.FLOAT16))}
    assert joined_in_place(Flow(steps, {}), shapes, ("w",)).steps == steps


def test_a_joint_value_within_another_one_is_copied() -> None:
    shapes = {**SHAPES, "w": ((2, 40, 5, 4), HALF), "v": ((2, 48, 5, 4), HALF)}
    outer = replace(join("c", "c", output="v"), inputs=("w", "c"))
    outer = replace(outer, attributes={**outer.attributes, "joins": [[0, 40], [1, 8]]})
    flow = joined_in_place(Flow((writer("a"), writer("b"), writer("c"), join("a", "b"), outer), {}), shapes, ("v",))
    assert [(step.name, step.outputs) for step in flow.steps] == [
        ("a", ("w",)), ("b", ("w",)), ("c", ("v",)), ("v", ("v",))
    ]  # fmt: skip
    assert flow.steps[-1].inputs == ("w", "v")


def test_a_concat_writes_what_would_be_padded_behind_it() -> None:
    shapes = {
        "a": ((7, 16), HALF), "x": ((7, 5), HALF), "w": ((7, 21), HALF), "wide": ((7, 24), HALF)
    }  # fmt: skip
    concat = join("a", "x")
    concat = replace(concat, attributes={
        "arguments": [["out", 0], ["int", 147], ["int", 21], ["in", 0], ["in", 1], ["int", 16], ["int", 21]],
        "joins": [[0, 16], [1, 5]], "grid": [1, 1, 1], "block": [256, 1, 1],
    })  # fmt: skip
    pad = Step("pad", "cuda.space_to_depth", ("w",), ("wide",), attributes={"aligns": 24})
    product = Step("y", "cuda.gemm", ("wide",), ("y",))
    flow = aligned_by_joins(Flow((concat, pad, product), {}), shapes, ("y",))
    first, second = flow.steps
    assert first.outputs == ("wide",) and second is product
    assert first.attributes["arguments"][1:3] == [["int", 168], ["int", 24]]

    placed_flow = joined_in_place(Flow((writer("a"), *flow.steps), {}), shapes, ("y",))
    assert [step.outputs for step in placed_flow.steps] == [("wide",), ("wide",), ("y",)]
    assert placed(placed_flow.steps[0]) == [24, 0]

    read_twice = (concat, pad, product, replace(product, name="z", inputs=("w",), outputs=("z",)))
    assert aligned_by_joins(Flow(read_twice, {}), shapes, ("y",)).steps == read_twice
    assert aligned_by_joins(Flow((concat, pad, product), {}), shapes, ("w", "y")).steps == (concat, pad, product)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    """A whole build on paper, of two branches and an input that are joined."""
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
    libraries = ("cudnn", "cublaslt", "cusparselt")
    config = BuildConfig(device="cuda", precisions=(DType.FLOAT16,), exclude_tactics=libraries)
    return build(save_joint(tmp_path / "joint.onnx"), config).plan


def test_a_build_writes_pieces_in_place(plan: Plan) -> None:
    check_plan(plan)
    (whole,) = {value for step in plan.steps for value in step.outputs if value.startswith("joint")}
    writers = [step for step in plan.steps if whole in step.outputs]
    assert [step.name for step in writers] == ["left", "right", "joint"]
    assert [whole in step.inputs for step in writers] == [False, True, True]
    (buffer,) = (buffer for buffer in plan.buffers if buffer.name == whole)
    assert buffer.first == plan.steps.index(writers[0]), "it lives from the first writer on"
    assert not {"left.relu", "right.relu"} & {buffer.name for buffer in plan.buffers}
    (layer,) = (layer for layer in plan.layers if layer.name == "joint")
    assert layer.step == "joint"
