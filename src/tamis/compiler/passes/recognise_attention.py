"""Find attention that was exported as products and a softmax.

From each Softmax over the last axis, outwards:

1. Behind it stands a product with v; between them perhaps the guard that exporters add for rows in which
   everything is masked, ``where(isnan(p), 0, p)``. Attention gives zeros for such rows itself.
2. In front of it stand, in any number: masks that are added; masks that choose, ``where(m, scores, -big)``; a
   Reshape that regroups batch axes and one that undoes it, with constant masks between (shifted windows);
   before all masks, factors and divisors, one number each. Then the product of q and k^T.
3. q and k^T may be scaled by one number each, as exporters spread the scale over both.
4. q, k and v have the same batch axes, at least one, and no mask enlarges the scores.
5. None of the values between is read by others: scores are large, and would be computed twice.

The result is ``Attention(q, k, v[, mask])``. k is the Transpose of what stood there; ``clean_transposes``
joins it with the one that made it. Several masks are added up, and masks that choose are told as 0 or -big.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType
from tamis.compiler.ir.ops import (
    Attention,
    Elementwise,
    MatMul,
    Pointwise,
    Reshape,
    Softmax,
    Transpose,
    Where,
)
from tamis.compiler.passes.view import View

# where(m, s, f) is s + where(m, 0, f) only if f swallows every score.
SWALLOWS = -1e8


@dataclass(frozen=True)
class _Mask:
    """What is added to the scores while they have ``shape``: a value, or 0 or ``fill`` as a value chooses."""

    value: str
    shape: tuple[int, ...]
    fill: float | None = None
    keep: bool = True  # whether True in a chooser keeps the score


@dataclass
class _Scores:
    """What the walk from the softmax to the first product has found."""

    node: Node | None = None
    scale: float = 1.0
    masks: list[_Mask] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


def recognise_attention(graph: Graph) -> Graph:
    """The graph with spelled-out attention as Attention nodes."""
    view = View(graph)
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if isinstance(node.op, Softmax) and not node.op.log:
            _recognise(view, editor, node)
    return editor.finish()


def _recognise(view: View, editor: GraphEditor, softmax: Node) -> None:
    """Rules 1 to 5 for one softmax."""
    rank = len(view.shape(softmax.output))
    assert isinstance(softmax.op, Softmax)
    if softmax.op.axis not in (-1, rank - 1) or rank < 3:
        return
    behind = _product_behind(view, softmax)
    if behind is None:
        return
    product, guard = behind
    scores = _walk(view, softmax.inputs[0], softmax, _Scores())
    if scores is None or scores.node is None:
        return
    q, q_scale = _unscaled(view, scores.node.inputs[0])
    turned, k_scale = _unscaled(view, scores.node.inputs[1])
    v = product.inputs[1]
    batch = view.shape(softmax.output)[:-2]
    if any(view.shape(value)[:-2] != batch for value in (q, turned, v)):
        return
    masks = [_as_constant(view, mask, view.shape(scores.node.output)) for mask in scores.masks]
    if any(mask is None for mask in masks):
        return
    mask = _sum_of_masks(view, editor, [mask for mask in masks if mask is not None], product.name)
    shape = view.shape(turned)
    k = editor.fresh(f"{product.output}.k")
    swap = (*range(rank - 2), rank - 1, rank - 2)
    turn = Node(editor.fresh_node(f"{product.name}.k"), Transpose(swap), (turned,), (k,), scores.node.origin)
    editor.add_node(turn, {k: TensorType((*shape[:-2], shape[-1], shape[-2]), view.type(turned).dtype)})
    inside = sorted([*scores.nodes, softmax, *guard, product], key=lambda node: view.position[node.name])
    origin = tuple(dict.fromkeys(name for node in inside for name in node.origin))
    op = Attention(scores.scale * q_scale * k_scale, mask=mask is not None)
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    editor.replace_node(product, replace(product, op=op, inputs=inputs, origin=origin))


def _product_behind(view: View, softmax: Node) -> tuple[Node, list[Node]] | None:
    """Rule 1: the product with v, and the nodes of the guard."""
    value, guard = softmax.output, list[Node]()
    readers = view.readers(value)
    if len(readers) == 2 and value not in view.outputs:
        check, choice = sorted(readers, key=lambda node: isinstance(node.op, Where))
        if check.op != Elementwise((Pointwise("isnan"),)) or view.sole_reader(check.output) is not choice:
            return None
        zero = view.scalar(choice.inputs[1]) if isinstance(choice.op, Where) else None
        if zero != 0 or choice.inputs != (check.output, choice.inputs[1], value):
            return None
        value, guard = choice.output, [check, choice]
    product = view.sole_reader(value)
    if product is None or product.op != MatMul() or product.inputs[0] != value or product.inputs[1] == value:
        return None
    return product, guard


def _walk(view: View, value: str, reader: Node, found: _Scores) -> _Scores | None:
    """Rule 2, from a value towards the product of q and k."""
    node = view.producer(value)
    if node is None or view.sole_reader(value) is not reader:
        return None
    found = replace(found, nodes=[*found.nodes, node])
    if isinstance(node.op, MatMul) and not node.op.epilogue:
        return replace(found, node=node) if view.shape(value) == _first_shape(view, found, value) else None
    if isinstance(node.op, Reshape):
        return _walk(view, node.inputs[0], node, found)
    if isinstance(node.op, Where):
        return _walk_where(view, node, found)
    for kind in ("mul", "div"):
        operands = view.binary(value, kind)
        for inner, factor in _orders(operands, both=kind == "mul"):
            number = view.scalar(factor)
            # A factor behind a mask would scale the mask as well.
            if number is not None and number != 0 and view.shape(inner) == view.shape(value):
                scale = number if kind == "mul" else 1 / number
                return _walk_scaled(view, inner, node, found, scale)
    for inner, mask in _orders(view.binary(value, "add"), both=True):
        if view.shape(inner) == view.shape(value):
            added = replace(found, masks=[*found.masks, _Mask(mask, view.shape(value))])
            result = _walk(view, inner, node, added)
            if result is not None:
                return result
    return None


def _walk_scaled(view: View, inner: str, node: Node, found: _Scores, scale: float) -> _Scores | None:
    """Behind a factor no further mask may come, as the factor would apply to it."""
    result = _walk(view, inner, node, replace(found, scale=found.scale * scale))
    return result if result is not None and len(result.masks) == len(found.masks) else None


def _walk_where(view: View, node: Node, found: _Scores) -> _Scores | None:
    """A mask that chooses between the scores and a large negative number."""
    chooser, yes, no = node.inputs
    for inner, other, keep in ((yes, no, True), (no, yes, False)):
        fill = view.scalar(other)
        if fill is not None and fill <= SWALLOWS and view.shape(inner) == view.shape(node.output):
            mask = _Mask(chooser, view.shape(inner), fill, keep)
            return _walk(view, inner, node, replace(found, masks=[*found.masks, mask]))
    return None


def _orders(operands: tuple[str, str] | None, *, both: bool) -> tuple[tuple[str, str], ...]:
    """The pair as it is, and the other way round when the operation commutes."""
    if operands is None:
        return ()
    return (operands, operands[::-1]) if both else (operands,)


def _first_shape(view: View, found: _Scores, value: str) -> tuple[int, ...]:
    """Shape of the scores as the softmax reads them."""
    return view.shape(found.nodes[0].output) if found.nodes else view.shape(value)


def _unscaled(view: View, value: str) -> tuple[str, float]:
    """Rule 3: the value without its factor, and the factor."""
    scale = 1.0
    while True:
        for kind in ("mul", "div"):
            for inner, factor in _orders(view.binary(value, kind), both=kind == "mul"):
                number = view.scalar(factor)
                if number is not None and number != 0 and view.shape(inner) == view.shape(value):
                    value, scale = inner, scale * (number if kind == "mul" else 1 / number)
                    break
            else:
                continue
            break
        else:
            return value, scale


def _as_constant(view: View, mask: _Mask, shape: tuple[int, ...]) -> _Mask | np.ndarray | None:
    """A constant mask as the array to add to scores of ``shape``; another as it is, if it fits."""
    array = view.array(mask.value)
    if array is None:
        return mask if mask.shape == shape else None
    if mask.fill is not None:
        array = np.where(array == mask.keep, np.float32(0), np.float32(mask.fill))
    return array if mask.shape == shape else regrouped(array, mask.shape, shape)


def regrouped(array: np.ndarray, shape: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray | None:
    """What broadcasts to ``shape`` as something that broadcasts to its reshaping ``target``.

    Axes are taken in the smallest groups of equal size; a group in which the array varies is written out.
    """
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    full: list[int] = []
    result: list[int] = []
    i = j = 0
    while i < len(shape) and j < len(target):
        first, second = i + 1, j + 1
        while (left := int(np.prod(shape[i:first]))) != (right := int(np.prod(target[j:second]))):
            if left < right:
                first += 1
            else:
                second += 1
            if first > len(shape) or second > len(target):
                return None
        varies = any(size != 1 for size in array.shape[i:first])
        full += shape[i:first] if varies else [1] * (first - i)
        result += target[j:second] if varies else [1] * (second - j)
        i, j = first, second
    full += [1] * (len(shape) - len(full))
    result += [1] * (len(target) - len(result))
    return np.broadcast_to(array, full).reshape(result)


def _sum_of_masks(view: View, editor: GraphEditor, masks: list[_Mask | np.ndarray], hint: str) -> str | None:
    """One value to add to the scores; None when there is no mask."""
    arrays = [mask for mask in masks if isinstance(mask, np.ndarray)]
    total: str | None = None
    if arrays:
        total = editor.add_constant(f"{hint}.mask", np.ascontiguousarray(sum(arrays[1:], start=arrays[0])))
    for mask in masks:
        if isinstance(mask, np.ndarray):
            continue
        value = mask.value if mask.fill is None else _choice(view, editor, mask, hint)
        total = value if total is None else _added(editor, total, value, hint)
    return total


def _choice(view: View, editor: GraphEditor, mask: _Mask, hint: str) -> str:
    """A mask that chooses, told as 0 or -big; one node for all layers that share the mask."""
    assert mask.fill is not None
    zero = editor.add_constant(f"{hint}.zero", np.zeros((), np.float32))
    fill = editor.add_constant(f"{hint}.fill", np.array(mask.fill, np.float32))
    value = editor.fresh(f"{hint}.choice")
    node = Node(
        editor.fresh_node(f"{hint}.choice"),
        Where(),
        (mask.value, *((zero, fill) if mask.keep else (fill, zero))),
        (value,),
    )
    editor.add_node(node, {value: TensorType(view.shape(mask.value))})
    return value


def _added(editor: GraphEditor, first: str, second: str, hint: str) -> str:
    """The sum of two masks."""
    value = editor.fresh(f"{hint}.masks")
    shape = np.broadcast_shapes(editor.type_of(first).shape, editor.type_of(second).shape)
    op = Elementwise((Pointwise("add", operand=1),))
    editor.add_node(Node(editor.fresh_node(f"{hint}.masks"), op, (first, second), (value,)), {value: TensorType(shape)})
    return value
