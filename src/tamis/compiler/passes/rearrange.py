"""The algebra of Reshape and Transpose: any chain of the two is one rearrangement of atoms.

Every axis is a product of atoms, factors that no step of the chain takes apart. A Reshape splits or joins
axes at atom borders, a Transpose orders them; so what a chain does is told by the atoms of the input in
row-major order and by the lists of atoms that make up each axis of the output. From that the shortest equal
chain follows, which never has more than three steps. Axes of size one hold no atoms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from math import prod

from tamis.compiler.ir.ops import Reshape, Transpose

Step = Reshape | Transpose

# Between [N, C, H, W] and [N, H, W, C]: free when the image lies channels-last in memory.
IMAGE_TO_ROWS = (0, 2, 3, 1)
ROWS_TO_IMAGE = (0, 3, 1, 2)


@dataclass(frozen=True)
class Rearrangement:
    """Atom i has ``sizes[i]`` elements; ``source`` and ``target`` list the atoms of each axis."""

    sizes: dict[int, int]
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    source: tuple[tuple[int, ...], ...]
    target: tuple[tuple[int, ...], ...]


def rearrangement(shape: tuple[int, ...], steps: Iterable[Step]) -> Rearrangement | None:
    """What a chain of steps does to a tensor of this shape; None where axes are cut across their factors."""
    if 0 in shape:
        return None
    sizes = {index: size for index, size in enumerate(shape) if size != 1}
    source = [[index] if size != 1 else [] for index, size in enumerate(shape)]
    target, now = [list(axis) for axis in source], shape
    for step in steps:
        if isinstance(step, Transpose):
            target, now = [target[axis] for axis in step.perm], tuple(now[axis] for axis in step.perm)
            continue
        cut = _cut(list(chain.from_iterable(target)), sizes, step.shape)
        if cut is None:
            return None
        axes, splits = cut
        for atom, parts in splits.items():
            source = [[p for a in axis for p in (parts if a == atom else (a,))] for axis in source]
        target, now = axes, step.shape
    return Rearrangement(sizes, shape, now, tuple(map(tuple, source)), tuple(map(tuple, target)))


def _cut(
    atoms: list[int], sizes: dict[int, int], shape: tuple[int, ...]
) -> tuple[list[list[int]], dict[int, tuple[int, int]]] | None:
    """The atoms dealt out to the axes of a shape; one that two axes share is split into two new ones."""
    axes: list[list[int]] = []
    splits: dict[int, tuple[int, int]] = {}
    queue = list(atoms)
    for size in shape:
        axis: list[int] = []
        left = size
        while left > 1:
            atom = queue.pop(0)
            if sizes[atom] > left:
                if sizes[atom] % left:
                    return None
                outer, inner = max(sizes) + 1, max(sizes) + 2
                sizes[outer], sizes[inner] = left, sizes[atom] // left
                splits[atom] = (outer, inner)
                queue.insert(0, inner)
                atom = outer
            elif left % sizes[atom]:
                return None
            axis.append(atom)
            left //= sizes[atom]
        axes.append(axis)
    return axes, splits


def shortest(arrangement: Rearrangement) -> list[Step]:
    """The shortest chain of steps that does the same.

    Among chains of two, one that turns an image into rows first, or rows into an image last, is preferred.
    """
    order = list(chain.from_iterable(arrangement.target))
    if order == list(chain.from_iterable(arrangement.source)):
        return [] if arrangement.source_shape == arrangement.target_shape else [Reshape(arrangement.target_shape)]
    first = _transpose_then_reshape(arrangement)
    if first is not None and len(first) == 1:
        return first
    backward = Rearrangement(
        arrangement.sizes,
        arrangement.target_shape,
        arrangement.source_shape,
        arrangement.target,
        arrangement.source,
    )
    second = _transpose_then_reshape(backward)
    # Reshaping first is free; reshaping what was transposed often copies.
    found = [] if second is None else [_inverse(second, backward)]
    found += [] if first is None else [first]
    if not found:
        return _through_atoms(arrangement)
    return min(found, key=lambda steps: not _is_image(steps))


def _is_image(steps: list[Step]) -> bool:
    """Whether an image is turned into rows first, or rows into an image last."""
    return steps[0] == Transpose(IMAGE_TO_ROWS) or steps[-1] == Transpose(ROWS_TO_IMAGE)


def _transpose_then_reshape(arrangement: Rearrangement) -> list[Step] | None:
    """``[Transpose]`` or ``[Transpose, Reshape]``, when whole input axes are moved."""
    order = list(chain.from_iterable(arrangement.target))
    axes = sorted(
        (axis for axis, atoms in enumerate(arrangement.source) if atoms),
        key=lambda axis: order.index(arrangement.source[axis][0]),
    )
    if list(chain.from_iterable(arrangement.source[axis] for axis in axes)) != order:
        return None
    # Axes of size one go where the target has some; a batch of one stays in front; the rest goes to the end.
    ones = [axis for axis, atoms in enumerate(arrangement.source) if not atoms]
    whole = [atoms for atoms in arrangement.target if atoms] == [arrangement.source[axis] for axis in axes]
    perm: list[int] = []
    if not whole and ones[:1] == [0]:
        perm.append(ones.pop(0))
    for atoms in arrangement.target if whole else ():
        if atoms:
            perm.append(axes.pop(0))
        elif ones:
            perm.append(ones.pop(0))
    perm += axes + ones
    shape = tuple(arrangement.source_shape[axis] for axis in perm)
    turn: Step = Transpose(tuple(perm))
    return [turn] if shape == arrangement.target_shape else [turn, Reshape(arrangement.target_shape)]


def _inverse(steps: list[Step], arrangement: Rearrangement) -> list[Step]:
    """The steps that undo ``[Transpose, Reshape]`` of an arrangement."""
    turn = steps[0]
    assert isinstance(turn, Transpose)
    between = tuple(arrangement.source_shape[axis] for axis in turn.perm)
    return [Reshape(between), Transpose(tuple(turn.perm.index(axis) for axis in range(len(turn.perm))))]


def _through_atoms(arrangement: Rearrangement) -> list[Step]:
    """Reshape to atoms, transpose, reshape; neighbours that stay neighbours are one axis."""
    source, order = (list(chain.from_iterable(axes)) for axes in (arrangement.source, arrangement.target))
    place = {atom: index for index, atom in enumerate(order)}
    runs: list[list[int]] = []
    for atom in source:
        if runs and place[atom] == place[runs[-1][-1]] + 1:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    shape = tuple(prod(arrangement.sizes[atom] for atom in run) for run in runs)
    perm = tuple(sorted(range(len(runs)), key=lambda index: place[runs[index][0]]))
    return [Reshape(shape), Transpose(perm), Reshape(arrangement.target_shape)]
