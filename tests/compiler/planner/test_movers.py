"""Splits and transposes that a copying kernel won in the race, as views: drafts for a GPU, and their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_attention_blocks import engine_of, error, expected_of, model, samples

from attention_layers import attention_on_the_cpu
from paper_gpu import H200, PaperClock, PaperGpu, make_up_measurements
from tamis.compiler import build
from tamis.compiler.config import BuildConfig
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Slice, Split, Transpose
from tamis.compiler.passes import run_passes
from tamis.compiler.planner import contest as contest_module
from tamis.compiler.planner.lower import Draft, Lowering
from tamis.compiler.planner.movers import moving_nothing
from tamis.compiler.planner.options import Option
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.attention import CudnnAttention
from tamis.compiler.tactics.base import Choice, Layer, Lowered, layer_of
from tamis.compiler.tuner.timing import Contender
from tamis.devices.base import BoundShape, Runner, Tensor
from tamis.devices.cuda import attention
from tamis.engine.plan import DeviceInfo, Step, Timing
from tamis.formats.dtype import DType
from tamis.kernels.cuda import compiler_name
from tamis.runtime.session import Session

CONFIG = BuildConfig(device="cuda", precisions=(DType.BFLOAT16,))


class Copying:
    """A tactic that moves data by copying, as our kernels do."""

    name = "copying"

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        return None if isinstance(layer.op, Split | Slice | Transpose) else "moves nothing"

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        yield from (replace(c, tactic=self.name) for c in Aten().choices(layer, device, config))

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        lowered = Aten().lower(layer, replace(choice, tactic="aten"))
        return replace(lowered, steps=tuple(replace(s, kernel="copy." + s.kernel) for s in lowered.steps))


class Gpu(PaperGpu):
    """A GPU on paper that also runs attention, on the CPU."""

    def bind(
        self, step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
    ) -> Runner:
        if step.kernel == attention.KERNEL:
            return attention.bind(step, constants, inputs, outputs)
        return super().bind(step, constants, inputs, outputs)


DEVICE = Gpu(H200)
TACTICS = (Aten(), CudnnAttention(), Copying())


def options_of(graph: Graph) -> list[Option]:
    """Every choice in bfloat16, row-major, of every tactic."""
    found = []
    for index, node in enumerate(graph.nodes):
        layer = layer_of(graph, node)
        for tactic in TACTICS:
            if tactic.refuses(layer, DEVICE.info(), CONFIG) is not None:
                continue
            for choice in tactic.choices(layer, DEVICE.info(), CONFIG):
                rows = all(f.layout == "row_major" for f in (*choice.inputs, *choice.outputs))
                if choice.precision == DType.BFLOAT16 and rows:
                    inputs = tuple(zip(layer.values, choice.inputs, strict=True))
                    outputs = tuple(zip(node.outputs, choice.outputs, strict=True))
                    found.append(Option(index, index + 1, choice, inputs, outputs, 1.0))
    return found


def drafted(kind: str, *wanted: str) -> tuple[Graph, list[Option], Lowering, Draft]:
    """The draft in which each layer goes to the last of the wanted tactics that can run it."""
    graph = run_passes(import_onnx(model(kind)))
    options, lowering = options_of(graph), Lowering(graph, TACTICS, (), DEVICE)
    chosen = {o.start: o for tactic in wanted for o in options if o.choice.tactic == tactic}
    return graph, options, lowering, lowering.draft(tuple(chosen[i] for i in range(len(graph.nodes))))


def movers(draft: Draft) -> list[Step]:
    return [s for s in draft.steps if s.kernel.split(".")[-1] in ("split", "slice", "transpose", "gather")]


KINDS = pytest.mark.parametrize("kind", ["bert", "vit"])
ATTENTIONS = pytest.mark.parametrize("wanted", [("aten",), ("aten", "cudnn.attention")], ids=["aten", "cudnn"])


@KINDS
@ATTENTIONS
def test_all_movers_become_views(kind: str, wanted: tuple[str, ...]) -> None:
    graph, options, lowering, draft = drafted(kind, *wanted, "copying")
    assert all(s.kernel.startswith("copy.") for s in movers(draft)) and len(movers(draft)) >= 6
    found = moving_nothing(graph, draft, options, lowering)
    assert found is not None
    attentions = [s for s in found.steps if s.kernel.endswith(".attention")]
    assert len(attentions) == 2 and all(s.attributes.get("strided") for s in attentions)
    assert all({"strided", "view"} & set(s.attributes) for s in movers(found))
    before = {o.start: o for o in draft.options}
    changed = [o for o in found.options if o != before[o.start]]
    assert changed and {o.choice.tactic for o in changed} == {"aten"}
    assert all((o.inputs, o.outputs) == (before[o.start].inputs, before[o.start].outputs) for o in changed)


def test_nothing_changes_where_views_are_had_already_or_never() -> None:
    graph, options, lowering, draft = drafted("vit", "aten")
    assert moving_nothing(graph, draft, options, lowering) is None
    graph, options, lowering, draft = drafted("vit", "aten", "copying")
    others = [o for o in options if o.choice.tactic != "aten"]
    assert moving_nothing(graph, draft, others, lowering) is None


def test_a_split_stays_where_one_reader_wants_dense_values(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, options, lowering, draft = drafted("vit", "aten", "copying")
    monkeypatch.setattr(DEVICE, "reads_strided", lambda *question: False)
    assert moving_nothing(graph, draft, options, lowering) is None


@pytest.mark.usefixtures("no_cuda_compiler")
@KINDS
@pytest.mark.parametrize("by_head", [False, True], ids=["as forecast", "otherwise"])
def test_results_are_right_also_where_a_forecast_is_wrong(kind: str, by_head: bool) -> None:
    graph, options, lowering, draft = drafted(kind, "aten", "cudnn.attention", "copying")
    found = moving_nothing(graph, draft, options, lowering)
    assert found is not None
    chosen = {o.start: o for o in options if o.choice.tactic == "aten"}
    plain: tuple[Any, ...] = tuple(chosen[o.start] if o.choice.tactic == "copying" else o for o in found.options)
    runnable = lowering.draft(plain)  # nothing here runs the copying kernels
    assert any(s.attributes.get("strided") for s in runnable.steps if s.kernel == "cudnn.attention")
    with attention_on_the_cpu(by_head=by_head) as called:
        engine = engine_of(graph, runnable)
        engine = replace(engine, plan=replace(engine.plan, device=H200))
        session = Session(engine, device=DEVICE, poison=True)
        (result,) = session.run(samples(kind)).values()
    assert called.backends == ["cudnn" if kind == "bert" else "flash"] * 2
    assert error(result, expected_of(kind)) < 0.04


class ViewsWin(PaperClock):
    """Engines that hand out splits as views are the fastest."""

    def race(self, contenders: Mapping[str, Contender], *limits: object) -> dict[str, Timing]:
        times = super().race(contenders, *limits)
        views = (name for name in contenders if name.endswith("splits as views"))
        return times | dict.fromkeys(views, Timing(9.0, 9.0, 9.0, 9))


@pytest.mark.skipif(compiler_name() is None, reason="our splitting kernel needs a CUDA compiler")
@pytest.mark.parametrize("wins", [True, False])
def test_a_build_races_splits_as_views_against_the_kernel_that_won(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
    if wins:
        monkeypatch.setattr(contest_module, "Clock", ViewsWin)
    plan = build(model("bert"), BuildConfig(device="cuda", precisions=(DType.FLOAT32,))).plan
    proposed = [e for e in plan.engines if e.name.endswith("splits as views")]
    assert len(proposed) == 1 and proposed[0].chosen == wins
    splits = [s for s in plan.steps if s.name.endswith(".split")]
    assert len(splits) == 2
    records = {r.name: r for r in plan.layers}
    for found in splits:
        record = records[found.name]
        if wins:
            assert found.kernel == "aten.split" and found.attributes["strided"]
            assert "by itself, but here the results are views" in record.why
            (lost,) = [c for c in record.candidates if c.tactic == "tamis.cuda"]
            assert "in the engine the winner hands out views" in lost.reason
        else:
            assert found.kernel == "cuda.concat" and record.why.startswith("fastest")
