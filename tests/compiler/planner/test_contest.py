"""Which of the proposed engines run in the contest."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sample_engines import FakeDevice, make_plan
from tamis.compiler import BuildConfig
from tamis.compiler.planner.contest import Contest, drop_duplicates
from tamis.compiler.planner.lower import Draft
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.plan import cheapest_first
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tuner.cache import TimingCache
from tamis.engine import Engine
from tamis.engine.plan import Format
from tamis.formats.dtype import DType


def draft(isa: str, precision: DType = DType.FLOAT32, ports: DType = DType.FLOAT32) -> Draft:
    format = Format(ports)
    choice = Choice("tamis.chain", precision, (format,), (format,), parameters={"isa": isa})
    option = Option(0, 2, choice, (("x", format),), (("y", format),), 1.0)
    return Draft((option,), (), (), {}, {}, ("y",), 0, 0, {})


def test_equal_drafts_run_once_and_names_do_not_hide_one() -> None:
    """Two ways to run the whole graph have one name; the second was lost even where the search chose it."""
    first, second, third = draft("avx2"), draft("avx512"), draft("portable")
    proposals = [("chain", first), ("chain", second), ("dense", first), ("all", second), ("more", third)]
    assert drop_duplicates(proposals) == {"chain": first, "all": second, "more": third}


def test_ports_in_a_narrow_type_have_a_name_of_their_own() -> None:
    """Of regions in bfloat16 those that take float32 as it comes lost to those with conversions by the noise of a race."""
    narrow, wide, other = (
        draft(isa, DType.BFLOAT16, ports).options[0]
        for isa, ports in (("avx2", DType.BFLOAT16), ("avx512", DType.FLOAT32), ("portable", DType.BFLOAT16))
    )
    found = cheapest_first([narrow, wide, other], lambda option: 1.0 if option is other else 2.0)
    assert found == [
        ("tamis.chain bfloat16 dense, bfloat16 outside", other),
        ("tamis.chain bfloat16 dense, bfloat16 outside", narrow),
        ("tamis.chain bfloat16 dense", wide),
    ]


def test_of_one_name_the_cheapest_comes_first_conversions_included() -> None:
    cost = {"avx2": 9.0, "avx512": 5.0, "portable": 7.0}
    options = [draft(isa).options[0] for isa in cost]
    found = cheapest_first(options, lambda option: cost[str(option.choice.parameters["isa"])])
    assert found == [("tamis.chain float32 dense", options[place]) for place in (1, 2, 0)]


class Expected:
    """A reference of ones, with what the engine gives whose weight is 1."""

    graph = SimpleNamespace(outputs=("out",))

    def samples(self) -> dict[str, np.ndarray]:
        return {"x": np.ones((2, 4), np.float32)}

    def outputs(self) -> dict[str, np.ndarray]:
        return {"out": np.full((2, 4), 3.0, np.float32)}


def test_a_draft_is_never_judged_by_one_that_is_gone() -> None:
    """A search drops drafts, and the next ones take their place in memory: each has a session and a key of its own."""

    def assemble(draft: Draft) -> Engine:
        weight = str(draft.options[0].choice.parameters["isa"])
        return Engine(make_plan(name=f"times {weight}"), {"w": np.float32([float(weight)])})

    device = FakeDevice()
    contest = Contest(assemble, device, BuildConfig(), TimingCache(None, device.info(), 1), Expected())  # type: ignore[arg-type]
    errors = [contest.accuracy(draft(str(weight))).max_relative_error for weight in range(1, 50)]
    assert errors == pytest.approx([2 * (weight - 1) / 3 for weight in range(1, 50)], rel=1e-4)
