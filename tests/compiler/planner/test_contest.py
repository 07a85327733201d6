"""Which of the proposed engines run in the contest."""

from __future__ import annotations

from tamis.compiler.planner.contest import drop_duplicates
from tamis.compiler.planner.lower import Draft
from tamis.compiler.planner.options import Option
from tamis.compiler.tactics.base import Choice
from tamis.engine.plan import Format
from tamis.formats.dtype import DType


def draft(isa: str) -> Draft:
    format = Format(DType.FLOAT32)
    choice = Choice("tamis.chain", DType.FLOAT32, (format,), (format,), parameters={"isa": isa})
    option = Option(0, 2, choice, (("x", format),), (("y", format),), 1.0)
    return Draft((option,), (), (), {}, {}, ("y",), 0, 0, {})


def test_equal_drafts_run_once_and_names_do_not_hide_one() -> None:
    """Two ways to run the whole graph have one name; the second was lost even where the search chose it."""
    first, second, third = draft("avx2"), draft("avx512"), draft("portable")
    proposals = [("chain", first), ("chain", second), ("dense", first), ("all", second), ("more", third)]
    assert drop_duplicates(proposals) == {"chain": first, "all": second, "more": third}
