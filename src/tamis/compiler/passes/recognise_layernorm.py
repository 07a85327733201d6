"""Find normalisations that were exported as arithmetic.

1. ``c * r``, where ``c = x - mean(x)`` and ``r`` is one over ``sqrt(mean(c^2) + epsilon)``, is a LayerNorm
   without scale and bias; the means run over the same last axes and keep them.
2. ``x * r``, where ``r`` is one over ``sqrt(mean(x^2) + epsilon)``, is one that leaves the mean in (RMS).
3. Spellings: a square is ``pow(c, 2)`` or ``c * c``; ``r`` divides as ``sqrt`` or ``pow 0.5``, or multiplies
   as the ``reciprocal`` of one, ``1 / sqrt`` or ``pow -0.5``; ``c`` may be computed twice.
4. A LayerNorm without scale takes a constant factor behind it as its scale, one without bias a constant
   summand as its bias, when nothing else reads it and the constant varies over the normalised axes only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Elementwise, LayerNorm, Reduce
from tamis.compiler.passes.view import View, to_fixed_point


def recognise_layernorm(graph: Graph) -> Graph:
    """The graph with spelled-out normalisations as LayerNorm nodes."""
    return to_fixed_point(_find(graph), _take_affine)


def _find(graph: Graph) -> Graph:
    """Rules 1 to 3."""
    view = View(graph)
    editor = GraphEditor(graph)
    for node in graph.nodes:
        found = _normalised(view, node)
        if found is None:
            continue
        source, op = found
        editor.replace_node(node, replace(node, op=op, inputs=(source,)))
    return editor.finish()


def _normalised(view: View, node: Node) -> tuple[str, LayerNorm] | None:
    """The tensor that a node normalises, and how."""
    if not isinstance(node.op, Elementwise):
        return None
    for centred, denominator in _quotients(view, node.output):
        summed = view.binary(denominator, "add")
        if summed is None:
            continue
        for variance, epsilon in (summed, summed[::-1]):
            number, reduced = view.scalar(epsilon), _mean(view, variance)
            if number is None or reduced is None:
                continue
            squared = _squared(view, reduced[0])
            if squared is None or not _same_difference(view, squared, centred):
                continue
            axis = reduced[1] - len(view.shape(squared))
            x = _minus_mean(view, centred, axis)
            return (
                (centred, LayerNorm(axis, number, False, False, rms=True))
                if x is None
                else (
                    x,
                    LayerNorm(axis, number, False, False),
                )
            )
    return None


def _quotients(view: View, value: str) -> list[tuple[str, str]]:
    """All ``(a, b)`` such that the value is ``a / sqrt(b)``."""
    found = []
    divided = view.binary(value, "div")
    if divided is not None:
        root = _root(view, divided[1], 0.5)
        found += [(divided[0], root)] if root is not None else []
    product = view.binary(value, "mul")
    for a, r in (product, product[::-1]) if product is not None else ():
        root = _root(view, r, -0.5)
        found += [(a, root)] if root is not None else []
    return found


def _root(view: View, value: str, exponent: float) -> str | None:
    """``b`` when the value is b to the power 0.5 or -0.5."""
    power = view.binary(value, "pow")
    if power is not None and view.scalar(power[1]) == exponent:
        return power[0]
    if exponent > 0:
        return view.unary(value, "sqrt")
    inner = view.unary(value, "reciprocal")
    divided = view.binary(value, "div")
    if inner is None and divided is not None and view.scalar(divided[0]) == 1:
        inner = divided[1]
    return None if inner is None else _root(view, inner, 0.5)


def _mean(view: View, value: str) -> tuple[str, int] | None:
    """``(x, first axis)`` when the value is the mean of x over its last axes, which it keeps."""
    node = view.producer(value)
    if node is None or not isinstance(node.op, Reduce) or node.op.kind != "mean" or not node.op.keep:
        return None
    axes, rank = node.op.axes, len(view.shape(node.inputs[0]))
    if not axes or axes != tuple(range(rank - len(axes), rank)):
        return None
    return node.inputs[0], axes[0]


def _squared(view: View, value: str) -> str | None:
    """``c`` when the value is its square."""
    power, product = view.binary(value, "pow"), view.binary(value, "mul")
    if power is not None and view.scalar(power[1]) == 2:
        return power[0]
    if product is not None and product[0] == product[1]:
        return product[0]
    return None


def _same_difference(view: View, first: str, second: str) -> bool:
    """Whether two values are one, or are computed alike."""
    return first == second or (
        view.binary(first, "sub") is not None and view.binary(first, "sub") == view.binary(second, "sub")
    )


def _minus_mean(view: View, centred: str, axis: int) -> str | None:
    """``x`` when a value is ``x - mean(x)`` over the axes from ``axis`` (negative) on."""
    difference = view.binary(centred, "sub")
    if difference is None:
        return None
    x, subtracted = difference
    mean = _mean(view, subtracted)
    return x if mean == (x, axis + len(view.shape(x))) else None


def _take_affine(graph: Graph) -> Graph:
    """Rule 4."""
    view = View(graph)
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if not isinstance(node.op, LayerNorm) or node.op.bias or node.op.residual:
            continue
        reader = view.sole_reader(node.output)
        for kind, free in (("mul", not node.op.scale), ("add", True)):
            operands = None if reader is None or not free else view.binary(reader.output, kind)
            if reader is None or operands is None or len(set(operands)) == 1:
                continue
            other = operands[0] if operands[1] == node.output else operands[1]
            vector = _over_axes(view, node, other)
            if vector is None:
                continue
            name = editor.add_constant(f"{other}.{'scale' if kind == 'mul' else 'bias'}", vector)
            op = replace(node.op, scale=node.op.scale or kind == "mul", bias=kind == "add")
            origin = tuple(dict.fromkeys((*node.origin, *reader.origin)))
            editor.remove_node(reader)
            editor.replace_node(
                node, replace(node, op=op, inputs=(*node.inputs, name), outputs=reader.outputs, origin=origin)
            )
            break
    return editor.finish()


def _over_axes(view: View, node: Node, value: str) -> np.ndarray | None:
    """A constant told over the normalised axes alone; None when it varies over others."""
    assert isinstance(node.op, LayerNorm)
    array, shape = view.array(value), view.shape(node.output)
    normalised = shape[node.op.axis :]
    if array is None or array.ndim > len(shape):
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(size != 1 for size in full.shape[: node.op.axis]):
        return None
    return np.ascontiguousarray(np.broadcast_to(full.reshape(full.shape[node.op.axis :]), normalised))
