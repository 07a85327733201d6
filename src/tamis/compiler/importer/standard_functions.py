"""Bodies of the ONNX operators that the standard itself defines as functions of simpler operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from tamis.compiler.ir.graph import TensorType
from tamis.onnx_files.tensors import ELEMENT_TYPES

# Their body is a Loop or a Scan, or draws random numbers; a body that cannot be run says less than the name.
OPAQUE = ("Bernoulli", "Range", "SequenceMap", "LinearAttention", "CausalConvWithState")


def standard_function(
    node: onnx.NodeProto, inputs: Sequence[TensorType | None], opsets: Mapping[str, int]
) -> onnx.FunctionProto | None:
    """The body of an operator as ONNX defines it, for these inputs; None when it is no function.

    ``inputs`` are the types of the node's inputs, None where one is left out.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain)
    if version is None or not 0 < version < 1 << 31 or node.op_type in OPAQUE:
        return None
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    body = b""
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= version]
        body = schema.get_function_with_opset_version(max(versions)) if versions else b""
    elif schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if versions:
            types = [_type_proto(type_).SerializeToString() for type_ in inputs]
            body = schema.get_context_dependent_function_with_opset_version(
                max(versions), node.SerializeToString(), types
            )
    if not body:
        return None
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(body)
    # Attributes that the node leaves out have the operator's defaults.
    defaults = (attribute.default_value for attribute in schema.attributes.values())
    function.attribute_proto.extend(value for value in defaults if value.type)
    return function


def _type_proto(type_: TensorType | None) -> onnx.TypeProto:
    if type_ is None:
        return onnx.TypeProto()
    number = next(number for number, dtype in ELEMENT_TYPES.items() if dtype == type_.dtype)
    return onnx.helper.make_tensor_type_proto(number, type_.shape)
