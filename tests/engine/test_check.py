from __future__ import annotations

from dataclasses import replace

import pytest

from sample_engines import F32, make_plan
from tamis.engine import Buffer, Plan, Port, check_plan
from tamis.errors import CorruptEngine
from tamis.formats.dtype import DType


def with_buffer(which: str, /, **changes: object) -> Plan:
    plan = make_plan()
    return replace(plan, buffers=tuple(replace(b, **changes) if b.name == which else b for b in plan.buffers))


def test_the_sample_plan_is_sound() -> None:
    check_plan(make_plan())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (with_buffer("y", offset=100), "inside the arena"),
        (with_buffer("y", offset=-4), "inside the arena"),
        (with_buffer("y", name="z"), "one name"),
        (with_buffer("z", name="q"), "no buffer"),
        (with_buffer("z", place="alias", alias_of="nowhere"), "does not exist"),
        (with_buffer("z", place="alias", alias_of="z"), "does not exist"),
        (with_buffer("z", place="alias", alias_of="y", shape=(4, 4)), "larger than 'y'"),
        (with_buffer("x", place="device"), "not placed in an input"),
        (with_buffer("x", shape=(8,)), "differ in shape"),
        (make_plan(steps=make_plan().steps[1:]), "reads 'y' before"),
        (make_plan(steps=make_plan().steps[:-1]), "never computed"),
        (make_plan(output_values=("nothing",)), "no buffer"),
        (make_plan(outputs=()), "do not fit"),
        (make_plan(outputs=(Port("out", (2, 4), DType.BFLOAT16),)), "differ in shape or type"),
    ],
)
def test_an_unsound_plan_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(CorruptEngine, match=message):
        check_plan(plan)


def test_a_view_of_an_input_may_be_an_output() -> None:
    plan = make_plan(
        steps=(),
        buffers=(
            Buffer("x", (2, 4), F32, "input", 0, 0, 32),
            Buffer("out", (2, 4), F32, "alias", 0, 0, 32, alias_of="x"),
        ),
    )
    check_plan(plan)
