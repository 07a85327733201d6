"""What an engine is: after a build, on request, and against another engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tamis.engine.file import Engine
from tamis.engine.inspect import summarize
from tamis.engine.plan import LayerRecord
from tamis.report.conditions import condition_lines
from tamis.report.scatter import build_scatter
from tamis.report.sparsity import sparsity_data, sparsity_lines
from tamis.report.tables import table
from tamis.report.units import amount, counted, counts, microseconds, shape, size


def build_summary(
    engine: Engine, seconds: float, output: str, file_bytes: int, stages: Mapping[str, float], *, measured: bool = True
) -> RenderableType:
    """What a build made: the sparsity lines, the time of the chosen engine, sizes; where its seconds went.

    ``measured``: whether it measured anything, or had all times from its timing cache.
    """
    plan, summary = engine.plan, summarize(engine)
    spent = ", ".join(f"{stage} {part:.1f}" for stage, part in stages.items())
    lines = [*sparsity_lines(plan.layers)]
    for record in plan.engines:
        time, mark = microseconds(record.timing.median_us), "chosen" if record.chosen else "not chosen"
        lines.append(f"Engine '{record.name}': {time}, {mark}: {record.reason}")
    lines += [
        *build_scatter(plan),
        *condition_lines(plan.conditions),
        f"Kernels: {counts(summary.kernels)}",
        f"Precisions: {counts(summary.precisions)}",
        f"Memory: weights {size(summary.weight_bytes)}, arena {size(summary.arena_bytes)}, "
        f"most activations at one time {size(summary.peak_bytes)}",
        f"Wrote {output} ({size(file_bytes)}) in {seconds:.1f} s: {spent}",
    ]
    if not measured:
        lines.append("Nothing was measured: all times are from the timing cache")
    if not plan.usable_for_accuracy:
        lines.append("This engine was pruned by force to see its speed: do not use its results")
    return Group(*(Text(line) for line in lines))


def build_data(
    engine: Engine, seconds: float, output: str, file_bytes: int, stages: Mapping[str, float], *, measured: bool = True
) -> dict[str, Any]:
    """The same as data. ``stages``: the seconds of each; ``measured``: as of ``build_summary``."""
    plan = engine.plan
    return {
        "output": output,
        "file_bytes": file_bytes,
        "seconds": seconds,
        "stages": dict(stages),
        "measured": measured,
        "sparsity": sparsity_data(plan.layers),
        "engines": [asdict(record) for record in plan.engines],
        "conditions": asdict(plan.conditions) if plan.conditions is not None else None,
        "summary": asdict(summarize(engine)),
        "usable_for_accuracy": plan.usable_for_accuracy,
    }


def inspect(engine: Engine) -> RenderableType:
    """Where and how an engine was built, its inputs and outputs, its steps and tensors."""
    plan, summary = engine.plan, summarize(engine)
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(plan.device.libraries.items()))
    layers, steps = counted(summary.layers, "layer"), counted(summary.steps, "step")
    facts = [
        f"{plan.name}: {layers} in {steps}, {amount(summary.flops)} a run",
        f"Built by Tamis {plan.tamis} on {plan.device.name} ({plan.device.architecture}), "
        f"{counted(plan.threads, 'thread')}",
        f"Libraries: {libraries}",
        f"Memory: weights {size(summary.weight_bytes)}, arena {size(summary.arena_bytes)}, "
        f"most activations at one time {size(summary.peak_bytes)}",
        f"Kernels: {counts(summary.kernels)}",
        f"Precisions: {counts(summary.precisions)}",
        f"Sparsity: {counts(summary.sparsities)}; {len(summary.eligible_layers)} layers eligible, "
        f"{len(summary.sparse_layers)} run sparse",
    ]
    if not plan.usable_for_accuracy:
        facts.append("Pruned by force to see its speed: do not use its results")
    ports = [("input", port) for port in plan.inputs] + [("output", port) for port in plan.outputs]
    rows = (
        (
            str(number),
            step.name,
            step.kernel,
            str(step.precision),
            step.sparsity,
            ", ".join(step.outputs),
            amount(step.flops),
            size(step.moved_bytes),
        )
        for number, step in enumerate(plan.steps)
    )
    columns = (">step", "name", "kernel", "precision", "sparsity", "gives", ">work", ">traffic")
    return Group(
        *(Text(fact) for fact in facts),
        Text(),
        table(("", "name", "shape", "type"), ((k, p.name, shape(p.shape), str(p.dtype)) for k, p in ports)),
        Text(),
        table(columns, rows),
    )


def difference_of_engines(first: Engine, second: Engine) -> RenderableType:
    """The layers that two engines of one model run differently, and their sizes and times side by side."""
    one, two = summarize(first), summarize(second)
    numbers = (
        ("time", _time(first), _time(second)),
        ("weights", size(one.weight_bytes), size(two.weight_bytes)),
        ("arena", size(one.arena_bytes), size(two.arena_bytes)),
        ("steps", str(one.steps), str(two.steps)),
        ("kernels", counts(one.kernels), counts(two.kernels)),
        ("precisions", counts(one.precisions), counts(two.precisions)),
    )
    changed = differing_layers(first, second)
    return Group(
        table(("", "first", "second"), numbers),
        Text(),
        table(("layer", "first", "second"), changed) if changed else Text("All layers run the same way"),
    )


def differing_layers(first: Engine, second: Engine) -> list[tuple[str, str, str]]:
    """Name and choice in both engines of each layer that differs; ``(none)`` where there is no such layer."""
    one = {layer.name: _choice(layer) for layer in first.plan.layers}
    two = {layer.name: _choice(layer) for layer in second.plan.layers}
    names = [name for name in dict.fromkeys([*one, *two]) if one.get(name) != two.get(name)]
    return [(name, one.get(name, "(none)"), two.get(name, "(none)")) for name in names]


def _choice(layer: LayerRecord) -> str:
    return f"{layer.chosen_tactic} {layer.chosen_precision} {layer.chosen_sparsity}"


def _time(engine: Engine) -> str:
    chosen = [record for record in engine.plan.engines if record.chosen]
    return microseconds(chosen[0].timing.median_us) if chosen else "not timed"
