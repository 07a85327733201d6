"""Concrete types of the graph's inputs, from the model and from the shapes the user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from tamis.compiler.ir.graph import TensorType
from tamis.errors import ConfigError, InvalidModel, UnsupportedModel
from tamis.onnx_files.tensors import element_type

Dimension = int | str


def input_types(inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorType]:
    """The type of every input.

    A dimension with a name ("batch") that a given shape fixes for one input is fixed for all of them.

    Raises:
        ConfigError: a symbolic dimension is left open, or a given shape does not fit the model.
        InvalidModel: an input is declared twice, or has no type.
        UnsupportedModel: an input is not a tensor.
    """
    declared: dict[str, list[Dimension] | None] = {}
    for value in inputs:
        if value.name in declared:
            raise InvalidModel(f"the input '{value.name}' is declared twice")
        declared[value.name] = _declared_shape(value)
    unknown = sorted(set(shapes) - set(declared))
    if unknown:
        raise ConfigError(f"the model has no input '{unknown[0]}'", remedy=f"its inputs are: {', '.join(declared)}")
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        _check_given(name, tuple(shape), declared[name], sizes)
    result: dict[str, TensorType] = {}
    for value in inputs:
        given = shapes.get(value.name)
        concrete = _filled(list(given) if given is not None else declared[value.name], sizes)
        if concrete is None:
            raise _missing_shapes(declared, shapes, sizes)
        element = value.type.tensor_type.elem_type
        result[value.name] = TensorType(concrete, element_type(element, f"input '{value.name}'"))
    return result


def _declared_shape(value: onnx.ValueInfoProto) -> list[Dimension] | None:
    """Fixed sizes and names of the dimensions; None when not even the rank is declared."""
    kind = value.type.WhichOneof("value")
    if kind is None:
        raise InvalidModel(f"the input '{value.name}' has no type")
    if kind != "tensor_type":
        raise UnsupportedModel(f"the input '{value.name}' is a {kind.removesuffix('_type')}, not a tensor")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"dimension {axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    ]


def _check_given(
    name: str, shape: tuple[int, ...], declared: list[Dimension] | None, sizes: dict[str, tuple[int, str]]
) -> None:
    text = "x".join(map(str, shape))
    if any(size < 1 for size in shape):
        raise ConfigError(f"the shape {text} given for input '{name}' has a size below 1")
    if declared is None:
        return
    if len(shape) != len(declared):
        raise ConfigError(
            f"the shape {text} given for input '{name}' has {len(shape)} axes, not {len(declared)}",
            remedy=f"the model declares [{', '.join(map(str, declared))}]",
        )
    for axis, (size, dimension) in enumerate(zip(shape, declared, strict=True)):
        if isinstance(dimension, int):
            if size != dimension:
                raise ConfigError(
                    f"the shape {text} given for input '{name}' has {size} on axis {axis}, "
                    f"where the model has the fixed size {dimension}",
                    remedy="export the model with a dynamic axis there, or give the fixed size",
                )
            continue
        if dimension.startswith("dimension "):
            continue
        known, source = sizes.setdefault(dimension, (size, name))
        if known != size:
            raise ConfigError(
                f"the dimension '{dimension}' is {known} in input '{source}' and {size} in input '{name}'",
                remedy="give it the same size everywhere",
            )


def _filled(declared: list[Dimension] | None, sizes: Mapping[str, tuple[int, str]]) -> tuple[int, ...] | None:
    if declared is None:
        return None
    result = []
    for dimension in declared:
        size = dimension if isinstance(dimension, int) else sizes.get(dimension, (0, ""))[0]
        if size < 1:
            return None
        result.append(size)
    return tuple(result)


def _missing_shapes(
    declared: Mapping[str, list[Dimension] | None],
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, tuple[int, str]],
) -> ConfigError:
    open_inputs, options = [], []
    for name, dimensions in declared.items():
        if name in shapes or _filled(dimensions, sizes) is not None:
            continue
        if dimensions is None:
            open_inputs.append(f"{name} [unknown rank]")
            options.append(f"--shape {name}=1x3x224x224")
            continue
        open_inputs.append(f"{name} [{', '.join(map(str, dimensions))}]")
        example = [_example(dimension, axis, len(dimensions), sizes) for axis, dimension in enumerate(dimensions)]
        options.append(f"--shape {name}={'x'.join(map(str, example))}")
    return ConfigError(
        f"these inputs have dimensions without a fixed size: {'; '.join(open_inputs)}",
        remedy=f"give their shapes, for example {' '.join(options)}",
    )


def _example(dimension: Dimension, axis: int, rank: int, sizes: Mapping[str, tuple[int, str]]) -> int:
    """A plausible size: that of an image for four axes, of a batch or a sequence otherwise."""
    if isinstance(dimension, int):
        return dimension
    usual = (1, 3, 224, 224) if rank == 4 else (1, *[128] * rank)
    return sizes.get(dimension, (usual[axis], ""))[0]
