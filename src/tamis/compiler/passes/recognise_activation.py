"""Find activations that were exported as several pointwise nodes and make each one step.

GELU alone is written in a dozen orders by the exporters in use. So this pass compares functions, not
spellings:

1. For each value made by pointwise nodes, the expression is followed back over pointwise steps with scalar
   constants, and over ``Where``, as long as it stays a function of one tensor ``x``. Of all such ``x``, the
   farthest comes first.
2. The expression is computed in float64 on ``SAMPLES`` and compared with every known activation: those of
   ``FIXED``, and ``clip``, ``leaky_relu`` and ``hardsigmoid``, whose parameters are read off the samples.
3. Where it is one of them within ``TOLERANCE`` everywhere, the value is computed by that one step.

The tolerance is wide enough for constants rounded to float16 (sqrt(2) = 1.4141) and narrower than the
distance between any two known activations (gelu and gelu_tanh differ by 5e-4, quick GELU by 2e-2).
Intermediate values that others read stay; what nothing reads any more is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Elementwise, Pointwise, Where
from tamis.compiler.passes.view import View
from tamis.formats.dtype import DType

# The longest spelling in use (tanh GELU with x cubed as two products) has nine steps.
LONGEST = 12
SAMPLES = np.concatenate([np.linspace(-12, 12, 241), [-40.0, -25.0, 25.0, 40.0]])
TOLERANCE = 5e-5

FIXED = (
    Pointwise("relu"), Pointwise("gelu"), Pointwise("gelu_tanh"), Pointwise("silu"), Pointwise("hardswish"),
    Pointwise("mish"), Pointwise("softplus"), Pointwise("sigmoid"), Pointwise("tanh"),
)  # fmt: skip


def recognise_activation(graph: Graph) -> Graph:
    """The graph with spelled-out activations as one step each."""
    view = View(graph)
    editor = GraphEditor(graph)
    inside: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in inside or not _is_pointwise(view, node):
            continue
        cone = _cone(view, node)
        if len(cone) < 2 and not (isinstance(node.op, Elementwise) and len(node.op.program) > 1):
            continue
        found = _recognise(view, node, cone)
        if found is None:
            continue
        source, step, covered = found
        inside |= {part.name for part in covered}
        origin = tuple(dict.fromkeys(name for part in reversed(covered) for name in part.origin))
        editor.replace_node(node, Node(node.name, Elementwise((step,)), (source,), node.outputs, origin))
    return editor.finish()


def _is_pointwise(view: View, node: Node) -> bool:
    """Whether a node can be part of an activation."""
    return isinstance(node.op, Where) or (isinstance(node.op, Elementwise) and node.op.program != ())


def _cone(view: View, node: Node) -> list[Node]:
    """The pointwise nodes of the same shape that lead to a node, the last one first, at most ``LONGEST``."""
    shape = view.shape(node.output)
    cone, waiting = [node], [node]
    seen = {node.name}
    while waiting and len(cone) < LONGEST:
        for value in waiting.pop(0).inputs:
            producer = view.producer(value)
            if producer is None or producer.name in seen or view.shape(value) != shape:
                continue
            if _is_pointwise(view, producer):
                seen.add(producer.name)
                cone.append(producer)
                waiting.append(producer)
    return sorted(cone, key=lambda part: -view.position[part.name])


def _recognise(view: View, node: Node, cone: list[Node]) -> tuple[str, Pointwise, list[Node]] | None:
    """The tensor, the activation of it that the node computes, and the nodes between them."""
    type_ = view.type(node.output)
    if type_.dtype != DType.FLOAT32:
        return None
    candidates = dict.fromkeys(value for part in reversed(cone) for value in part.inputs)
    for source in candidates:
        if view.graph.is_constant(source) or view.type(source) != type_:
            continue
        covered = _between(view, node, cone, source)
        if covered is None or (len(covered) == 1 and not _many_steps(covered[0])):
            continue
        step = _match(_samples_of(view, covered, source, node.output))
        if step is not None:
            return source, step, covered
    return None


def _many_steps(node: Node) -> bool:
    return isinstance(node.op, Elementwise) and len(node.op.program) > 1


def _between(view: View, node: Node, cone: list[Node], source: str) -> list[Node] | None:
    """The nodes that compute a node from ``source`` and scalar constants alone, last one first."""
    makers = {part.output: part for part in cone}
    covered: dict[str, Node] = {}
    waiting = [node.output]
    while waiting:
        value = waiting.pop()
        if value == source or view.scalar(value) is not None:
            continue
        part = makers.get(value)
        if part is None:
            return None
        if part.name not in covered:
            covered[part.name] = part
            waiting.extend(part.inputs)
    return sorted(covered.values(), key=lambda part: -view.position[part.name])


def _samples_of(view: View, covered: list[Node], source: str, result: str) -> np.ndarray:
    """The values of an expression on ``SAMPLES``."""
    values: dict[str, np.ndarray] = {source: SAMPLES}
    with np.errstate(all="ignore"):
        for part in reversed(covered):
            inputs = [_sample_input(view, values, value) for value in part.inputs]
            values[part.output] = evaluate(part.op, inputs)[0]
    return np.broadcast_to(values[result], SAMPLES.shape).astype(np.float64)


def _sample_input(view: View, values: Mapping[str, np.ndarray], value: str) -> np.ndarray:
    if value in values:
        return values[value]
    array = view.graph.constants[value].reshape(())
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _match(samples: np.ndarray) -> Pointwise | None:
    """The known activation with these values on ``SAMPLES``."""
    if not np.isfinite(samples).all():
        return None
    for step in (*FIXED, *_fitted(samples)):
        with np.errstate(all="ignore"):
            expected = evaluate(Elementwise((step,)), [SAMPLES])[0]
        if np.all(np.abs(samples - expected) <= TOLERANCE + 1e-6 * np.abs(SAMPLES)):
            return step
    return None


def _fitted(samples: np.ndarray) -> tuple[Pointwise, ...]:
    """Activations with parameters, the parameters read off the samples."""
    at = dict(zip(SAMPLES.round(3).tolist(), samples.tolist(), strict=True))
    low, high, zero = at[-40.0], at[40.0], at[0.0]
    fitted = []
    if -12 < low < high < 12:
        fitted.append(Pointwise("clip", (float(np.float32(low)), float(np.float32(high)))))
    if zero == 0 and low < 0 and low != -40:
        fitted.append(Pointwise("leaky_relu", (float(np.float32(low / -40.0)),)))
    if low == 0 and high == 1 and 0 < zero < 1 and at[0.1] > zero:
        slope = round((at[0.1] - zero) / 0.1, 6)
        # 1/6 is written in full by people and rounded by exporters.
        fitted.append(Pointwise("hardsigmoid", (1 / 6 if abs(slope - 1 / 6) < 1e-4 else slope, zero)))
    return tuple(fitted)
