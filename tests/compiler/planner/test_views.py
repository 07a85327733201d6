"""Which steps hand out views: marks and refusals on small flows, and whole engines with and without views."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tamis.compiler.planner.views import Flow, with_views
from tamis.devices.cpu import CpuDevice
from tamis.engine.plan import Format, Step
from tamis.formats.dtype import DType

DEVICE = CpuDevice(threads=2)
F32 = Format()
# A joined projection [B, S, 3 H D], its heads, and heads in the order that attention wants.
BATCH, LENGTH, HEADS, DEPTH = 2, 5, 3, 8
WIDTH = HEADS * DEPTH
BY_TOKEN, BY_HEAD = (BATCH, LENGTH, HEADS, DEPTH), (BATCH, HEADS, LENGTH, DEPTH)
SHAPES = {
    "x": (BATCH, LENGTH, 3 * WIDTH),
    **dict.fromkeys(("q0", "k0", "v0", "y"), (BATCH, LENGTH, WIDTH)),
    **dict.fromkeys(("q1", "k1", "v1", "b"), BY_TOKEN),
    **dict.fromkeys(("q", "k", "v", "a"), BY_HEAD),
}


def step(kernel: str, inputs: str, outputs: str, **attributes: object) -> Step:
    values = tuple(inputs.split())
    arguments = [f"in{index}" for index in range(len(values))]
    name = f"{kernel} {outputs}"
    return Step(name, kernel, values, tuple(outputs.split()), attributes={"arguments": arguments, **attributes})


def transpose(source: str, target: str) -> Step:
    return step("aten.transpose", source, target, perm=[0, 2, 1, 3])


SPLIT = step("aten.split", "x", "q0 k0 v0", axis=2, sizes=[WIDTH] * 3)
CUTS = {f"{v}1": step("aten.reshape", f"{v}0", f"{v}1", shape=BY_TOKEN) for v in "qkv"}
HEAD_STEPS = tuple(transpose(f"{v}1", v) for v in "qkv")
ATTENTION = step("aten.attention", "q k v", "a", scale=0.5)
JOIN = step("aten.reshape", "b", "y", shape=(BATCH, LENGTH, WIDTH))


def marked(
    steps: Sequence[Step],
    aliases: dict[str, Step] | None = None,
    outputs: Sequence[str] = (),
    formats: dict[str, Format] | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> tuple[Flow, dict[str, str]]:
    """The flow with views, and how each of its steps is marked, by output."""
    known = {v: (shape, (formats or {}).get(v, F32)) for v, shape in (SHAPES | (shapes or {})).items()}
    flow = with_views(Flow(tuple(steps), aliases or {}), known, outputs, DEVICE)
    marks = {}
    for found in flow.steps:
        (mark,) = [how for how in ("strided", "view") if how in found.attributes] or [""]
        marks |= dict.fromkeys(found.outputs, mark)
    return flow, marks


def test_an_attention_block_copies_nothing() -> None:
    steps = (SPLIT, *HEAD_STEPS, ATTENTION, transpose("a", "b"), step("tamis.chain", "y", "z"))
    flow, marks = marked(steps, CUTS | {"y": JOIN}, ["z"], shapes={"z": (BATCH, LENGTH, WIDTH)})
    assert marks == dict.fromkeys(("q0", "k0", "v0", "q1", "k1", "v1", "q", "k", "v", "a"), "strided") | {
        "b": "view",
        "z": "",
    }
    assert flow.aliases == {"y": JOIN}, "only over dense memory"
    assert not flow.copied and all(s.moved_bytes == 0 for s in flow.steps if "strided" in s.attributes)
    made: set[str] = {"x", "y"}
    for found in flow.steps:  # every step comes after those it reads
        assert set(found.inputs) <= made
        made |= set(found.outputs)


def test_nothing_is_marked_where_views_are_not_allowed() -> None:
    steps = (SPLIT, *HEAD_STEPS, ATTENTION, transpose("a", "b"))
    flow = Flow(steps, CUTS)
    result = with_views(flow, {v: (s, F32) for v, s in SHAPES.items()}, ["b"], DEVICE, allowed=False)
    assert (result.steps, result.aliases) == (steps, CUTS)
    assert result.copied == {"q0", "k0", "v0"}, "transposes copy into given memory, splits into their own"


def test_an_output_of_the_engine_is_dense() -> None:
    steps = (transpose("q1", "q"), step("aten.elementwise", "q", "a", program=[{"kind": "relu"}]))
    assert marked(steps, outputs=["a"])[1]["q"] == "strided"
    assert marked(steps, outputs=["a", "q"])[1]["q"] == ""


def test_an_output_reached_by_an_alias_is_dense() -> None:
    alias = {"y": step("aten.reshape", "q", "y", shape=(BATCH, LENGTH, WIDTH))}
    flow, marks = marked((transpose("q1", "q"),), alias, ["y"])
    assert marks == {"q": ""} and flow.aliases == alias


@pytest.mark.parametrize("kernel", ["onednn.linear", "openvino.region", "tamis.chain", "aten.layer_norm"])
def test_a_reader_that_needs_dense_values_refuses(kernel: str) -> None:
    steps = (*HEAD_STEPS, ATTENTION, step(kernel, "k", "z"))
    marks = marked(steps, outputs=["a", "z"], shapes={"z": BY_HEAD})[1]
    assert (marks["q"], marks["k"], marks["v"]) == ("strided", "", "strided")


def test_one_refusal_keeps_a_whole_split_dense() -> None:
    flow, marks = marked((SPLIT, *HEAD_STEPS, ATTENTION, step("tamis.chain", "k0", "z")), CUTS, ["a", "z"],
                         shapes={"z": (BATCH, LENGTH, WIDTH)})  # fmt: skip
    assert marks["q0"] == marks["k0"] == marks["v0"] == "" and flow.copied == {"q0", "k0", "v0"}
    assert flow.aliases == CUTS and marks["k"] == "strided"


def test_an_alias_that_would_have_to_copy_refuses() -> None:
    merge = {"y": step("aten.reshape", "q", "y", shape=(BATCH, LENGTH, WIDTH))}
    read = step("aten.elementwise", "y", "b", program=[{"kind": "relu"}])
    flow, marks = marked((transpose("q1", "q"), read), merge, ["b"], shapes={"b": (BATCH, LENGTH, WIDTH)})
    assert marks["q"] == "" and flow.aliases == merge


def test_an_alias_of_an_alias_becomes_a_step_too() -> None:
    cut, squeeze = (BATCH, LENGTH, 1, WIDTH), (BATCH, LENGTH, HEADS, DEPTH)
    aliases = {"r": step("aten.reshape", "q0", "r", shape=cut), "q1": step("aten.reshape", "r", "q1", shape=squeeze)}
    add = step("aten.elementwise", "q1", "b", program=[{"kind": "relu"}])
    flow, marks = marked((SPLIT, add), aliases, ["b"], shapes={"r": cut})
    assert marks == dict.fromkeys(("q0", "k0", "v0", "r", "q1"), "strided") | {"b": ""} and not flow.aliases


def test_columns_do_not_serve_attention() -> None:
    turn = step("aten.transpose", "t", "q", perm=[0, 1, 3, 2])
    marks = marked((turn, ATTENTION), outputs=["a"], shapes={"t": (BATCH, HEADS, DEPTH, LENGTH)})[1]
    assert marks["q"] == ""


def test_the_next_transpose_copies_once_for_both() -> None:
    steps = (step("aten.transpose", "x", "t", perm=[1, 2, 0]), step("aten.transpose", "t", "u", perm=[0, 2, 1]),
             step("tamis.chain", "u", "z"))  # fmt: skip
    last = {"t": (LENGTH, 3 * WIDTH, BATCH), "u": (LENGTH, BATCH, 3 * WIDTH), "z": (1,)}
    assert marked(steps, outputs=["z"], shapes=last)[1] == {"t": "strided", "u": "", "z": ""}


def test_a_transpose_of_axes_of_one_moves_nothing_whoever_reads_it() -> None:
    one = {"s": (BATCH, 1, HEADS, DEPTH), "t": (BATCH, HEADS, 1, DEPTH)}
    assert marked((transpose("s", "t"),), outputs=["t"], shapes=one)[1] == {"t": "view"}


def test_other_layouts_and_types_are_left_alone() -> None:
    image = Format(layout="channels_last")
    read = step("aten.concat", "q a", "z", axis=0)
    steps = (transpose("q1", "q"), read)
    shapes = {"z": BY_HEAD}
    assert marked(steps, outputs=["z"], shapes=shapes)[1]["q"] == "strided"
    assert marked(steps, outputs=["z"], shapes=shapes, formats={"q1": image})[1]["q"] == ""
    assert marked(steps, outputs=["z"], shapes=shapes, formats={"q": Format(DType.BFLOAT16)})[1]["q"] == ""
    half = dict.fromkeys(("q1", "q"), Format(DType.BFLOAT16))
    assert marked(steps, outputs=["z"], shapes=shapes, formats=half)[1]["q"] == "strided"


def test_attention_stays_dense_for_readers_that_need_it() -> None:
    marks = marked((ATTENTION, transpose("a", "b"), step("onednn.linear", "a", "z")), outputs=["b", "z"],
                   shapes={"z": BY_HEAD})[1]  # fmt: skip
    assert marks["a"] == "" and marks["b"] == ""
