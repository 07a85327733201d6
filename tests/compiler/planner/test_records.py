"""What the records of a build say: why a faster candidate lost, and what became of regions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.ops import Elementwise, Pointwise
from tamis.compiler.planner.lower import Draft
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.records import layer_records, region_records
from tamis.compiler.planner.regions import RegionTrial
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.region import Region
from tamis.compiler.tuner.race import Entry, LayerRace
from tamis.engine.plan import Candidate, Format, LayerRecord, RegionRecord, Sparsity, Timing
from tamis.formats.dtype import DType

F32 = Format()
NODES = tuple(Node(f"n{i}", Elementwise((Pointwise("relu"),)), (f"v{i}",), (f"v{i + 1}",)) for i in range(2))
TYPES = {f"v{i}": TensorType((1, 8)) for i in range(3)}


def choice(tactic: str, sparsity: Sparsity = "dense", output: Format = F32, **parameters: object) -> Choice:
    return Choice(tactic, DType.FLOAT32, (F32,), (output,), sparsity, parameters)


def timing(us: float) -> Timing:
    return Timing(us, us, us, 5)


def option(start: int, stop: int, chosen: Choice, us: float) -> Option:
    return Option(start, stop, chosen, ((f"v{start}", F32),), ((f"v{stop}", chosen.outputs[0]),), us)


def draft(*options: Option) -> Draft:
    return Draft(options, (), (), {}, {}, ("v2",), 0, 0, {})


DENSE, SPARSE, OTHER = choice("dense"), choice("sparse", "2:4"), choice("other", output=Format(DType.BFLOAT16))
DENSE_ONLY = draft(option(0, 1, DENSE, 4.0), option(1, 2, DENSE, 4.0))
ALL = draft(option(0, 1, SPARSE, 2.0), option(1, 2, SPARSE, 2.0))
WHOLE = draft(option(0, 2, choice("region"), 3.0))


def races(*entries: Entry) -> list[LayerRace]:
    return [LayerRace(Layer(node, TYPES, {}), entries, ()) for node in NODES]


def first_record(won: Draft, drafts: Mapping[str, Draft], *entries: Entry) -> tuple[LayerRecord, dict[str, Candidate]]:
    record = layer_records(races(*entries), won, drafts)[0]
    return record, {candidate.tactic: candidate for candidate in record.candidates}


def test_a_faster_candidate_lost_with_its_whole_engine() -> None:
    entries = Entry(DENSE, timing(4.0)), Entry(SPARSE, timing(2.0)), Entry(OTHER, timing(3.0))
    record, found = first_record(DENSE_ONLY, {"dense": DENSE_ONLY, "all tactics": ALL}, *entries)
    reason = "but the whole engine 'all tactics' with it was not faster"
    assert found["sparse"].reason == f"0.50x the winner's time by itself, {reason}"
    assert record.why.endswith(reason)
    # No engine of the contest ran this one: the search knew that its format does not pay.
    assert found["other"].reason.endswith("but converting to and from its format costs more")
    alone, found = first_record(DENSE_ONLY, {"dense": DENSE_ONLY}, *entries)
    assert "whole engine" not in found["sparse"].reason + alone.why


def test_the_region_that_runs_a_layer_is_the_reason() -> None:
    record, found = first_record(WHOLE, {"region": WHOLE, "all tactics": ALL}, Entry(SPARSE, timing(2.0)))
    assert found["sparse"].reason == "the region 'region' of 2 layers runs this layer"
    assert record.why.startswith("runs within a region of 2 layers")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("skipped: the time budget of 5 s was spent", "the time budget of 5 s was spent"),
        ("skipped by the roofline: at least 9.0 us, another took 1.0 us", "by the roofline: at least 9.0 us, another"),
    ],
)
def test_a_status_is_not_repeated_in_its_reason(failure: str, reason: str) -> None:
    entries = Entry(DENSE, timing(4.0)), Entry(SPARSE, reason=failure)
    _, found = first_record(DENSE_ONLY, {"dense": DENSE_ONLY}, *entries)
    assert found["sparse"].status == "skipped" and found["sparse"].reason.startswith(reason)


def test_candidates_keep_their_formats() -> None:
    _, found = first_record(DENSE_ONLY, {}, Entry(DENSE, timing(4.0)), Entry(OTHER, timing(9.0)))
    assert (found["other"].inputs, found["other"].outputs) == ((F32,), (Format(DType.BFLOAT16),))


def region_record(us: float, won: Draft, **parameters: object) -> RegionRecord:
    region = Region(0, 2, NODES, ("v0",), ("v2",))
    trial = RegionTrial(region, choice("region", "2:4" if parameters else "dense", **parameters), timing(us), None)
    (record,) = region_records([trial], races(Entry(DENSE, timing(4.0))), won, "dense")
    return record


def test_what_became_of_a_region() -> None:
    used = region_record(3.0, WHOLE)
    assert used.chosen and used.parts_us == 8.0 and used.reason == "runs these layers in the engine"
    promising = region_record(3.0, DENSE_ONLY)
    assert not promising.chosen
    assert promising.reason == "the engine 'dense' won by its time as a whole, and runs these layers otherwise"
    assert region_record(12.0, DENSE_ONLY).reason == "1.50x the time of its parts"


def test_a_region_says_which_of_its_layers_are_sparse() -> None:
    record = region_record(3.0, DENSE_ONLY, isa="avx2", sparsity_by_layer={"n0": "2:4", "n1": "dense"})
    assert record.sparse_layers == ("n0",) and record.parameters == {"isa": "avx2"}
    assert (record.inputs, record.outputs) == ((F32,), (F32,))
    assert region_record(3.0, DENSE_ONLY).sparse_layers == ()
