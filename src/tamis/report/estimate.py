"""An estimate in text: a line for each layer with a weight, the two engines, and a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tamis.engine.crossover import Runner
from tamis.engine.estimate import Estimate, LayerEstimate, Versus
from tamis.report.conditions import condition_lines
from tamis.report.scatter import scatter, scatter_lines
from tamis.report.tables import table
from tamis.report.units import counted, microseconds, shape, spread

_MOST_NAMES = 8
_STATES = {"prunable": "could be", "sparse": "is 2:4"}


def estimate_report(measured: Estimate) -> RenderableType:
    """How it was measured, the layers, the engines, and the verdict."""
    columns = ("layer", "shape", "2:4", "dense", ">time", "sparse", ">time", ">speed", "carries the gain")
    return Group(
        *(Text(line) for line in estimate_conditions(measured)),
        Text(),
        table(columns, (_row(layer) for layer in measured.layers)),
        Text(),
        Text(f"dense engine: {spread(measured.whole.dense)}"),
        Text(f"with 2:4 where it pays: {spread(measured.whole.sparse)}"),
        Text(f"gain: {gain_text(measured.whole)}"),
        Text(),
        Text(estimate_verdict(measured)),
    )


def estimate_conditions(measured: Estimate) -> tuple[str, ...]:
    """Where and how it was measured, in lines, with a warning when the times scatter."""
    device = measured.device
    cores = f", {counted(measured.threads, 'thread')}" if device.kind == "cpu" else ""
    ports = ", ".join(f"{port.name} {shape(port.shape)}" for port in measured.inputs)
    timings = [side.timing for layer in measured.layers for side in (layer.dense, layer.sparse) if side is not None]
    engines = [measured.whole.dense, measured.whole.sparse]
    return (
        f"{measured.model} ({ports}) on {device.name} ({device.architecture}){cores}, "
        f"{', '.join(map(str, measured.precisions))}, Tamis {measured.tamis}",
        f"All weights that can be were pruned to {measured.pattern} by magnitude, to see the speed only; "
        f"{'cold' if measured.cold else 'warm'} caches; {measured.seconds:.0f} s",
        *condition_lines(measured.conditions),
        *(
            scatter_lines(scatter(engines), "Measure", typically=True)
            or scatter_lines(scatter(timings), "Measure", typically=True)
        ),
    )


def gain_text(whole: Versus) -> str:
    """The gain with its spread over the turns; a gain within the noise is none."""
    range_ = f"{whole.gain:.2f}x, from {whole.gain_p10:.2f}x to {whole.gain_p90:.2f}x in 80% of the turns"
    return range_ if whole.pays else f"none beyond the noise ({range_})"


def estimate_verdict(measured: Estimate) -> str:
    """What to do, in one sentence."""
    layers, carriers = measured.layers, measured.carriers
    if not measured.whole.pays:
        return f"{measured.pattern} brings nothing here: {_why_nothing(layers)}; do not fine-tune for it"
    many = f"{len(carriers)} of {counted(len(layers), 'layer')}" if len(carriers) < len(layers) else "all layers"
    held = sum(layer.state == "sparse" for layer in carriers)
    already = f" ({held} of them hold it already)" if held else ""
    rest = "; do not fine-tune the others" if len(carriers) < len(layers) else ""
    verb = "carries" if len(carriers) == 1 < len(layers) else "carry"
    return (
        f"{measured.pattern} brings {measured.whole.gain:.2f}x; {many} {verb} it{already}: "
        f"{named([layer.name for layer in carriers])}{rest}"
    )


def named(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _why_nothing(layers: Sequence[LayerEstimate]) -> str:
    able = [layer for layer in layers if layer.state != "ineligible"]
    if not layers:
        return "the model has no layer with a constant weight"
    if not able:
        return f"none of its {counted(len(layers), 'weight')} can follow the pattern"
    if all(layer.sparse is None for layer in able):
        return f"no sparse kernel runs any of the {counted(len(able), 'layer')} that could follow it"
    faster = [layer for layer in able if layer.pays]
    if not faster:
        return "no layer is faster by more than the noise"
    return (
        f"{counted(len(faster), 'layer')} would be faster by themselves, "
        f"but the whole engine is not by more than the noise"
    )


def _row(layer: LayerEstimate) -> tuple[str, ...]:
    text = layer.description
    return (
        layer.name,
        text if text.startswith(layer.kind) else f"{layer.kind} {text}",
        _STATES.get(layer.state, f"no: {layer.reason}"),
        *_side(layer.dense),
        *_side(layer.sparse),
        "" if layer.ratio is None else f"{layer.ratio:.2f}x",
        "yes" if layer.carries else f"no: {layer.why}" if layer.why else "no",
    )


def _side(runner: Runner | None) -> tuple[str, str]:
    if runner is None:
        return "", ""
    return f"{runner.tactic} {runner.precision}", microseconds(runner.timing.median_us)
