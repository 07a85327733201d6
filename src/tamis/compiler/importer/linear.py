"""Matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Einsum, Linear, MatMul, Transpose
from tamis.errors import InvalidModel


def matmul(net: Network, call: Call) -> str:
    """MatMul; a constant matrix on the right makes it a linear layer."""
    return product(net, call.input(0), call.input(1))


def product(net: Network, a: str, b: str) -> str:
    """``a @ b``, as a linear layer when ``b`` is a constant matrix."""
    weight = weight_matrix(net, a, b)
    if weight is not None:
        return net.add(Linear(), a, weight)
    return net.add(MatMul(), a, b)


def weight_matrix(net: Network, a: str, b: str) -> str | None:
    """``b`` transposed to [N,K] when it is a constant matrix (leading axes of 1 aside), else None."""
    array = net.known(b)
    if array is None or net.known(a) is not None or net.rank(b) < 2 or not net.dtype(b).is_float:
        return None
    if net.rank(b) > 2:
        if net.rank(a) < net.rank(b) or any(size != 1 for size in array.shape[:-2]):
            return None
        b = net.constant(array.reshape(array.shape[-2:]), b)
    return net.transposed_constant(b)


def gemm(net: Network, call: Call) -> str:
    """``alpha A B + beta C``."""
    a, b, c = call.input(0), call.input(1), call.optional(2)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if net.rank(a) != 2 or net.rank(b) != 2:
        raise InvalidModel(f"Gemm needs matrices, got {net.types[a]} and {net.types[b]}")
    if call.integer("transA", 0):
        a = net.add(Transpose((1, 0)), a)
    transposed = bool(call.integer("transB", 0))
    c = c if beta != 0 else None
    columns = net.shape(b)[0 if transposed else 1]
    if net.known(b) is None or not net.dtype(b).is_float:
        result = _scaled(net, net.add(MatMul(), a, net.add(Transpose((1, 0)), b) if transposed else b), alpha)
    else:
        weight = b if transposed else net.transposed_constant(b)
        weight = _scaled_constant(net, weight, alpha)
        bias = _bias(net, c, columns, beta)
        if bias is not None:
            return net.add(Linear(bias=True), a, weight, bias)
        result = net.add(Linear(), a, weight)
    return result if c is None else net.pointwise("add", result, _scaled(net, c, beta))


def _scaled(net: Network, value: str, factor: float) -> str:
    return value if factor == 1 else net.pointwise("mul", value, net.scalar(factor, value))


def _scaled_constant(net: Network, value: str, factor: float) -> str:
    if factor == 1:
        return value
    array = net.constants[value]
    return net.constant(array * array.dtype.type(factor), f"{value}.scaled")


def _bias(net: Network, c: str | None, columns: int, beta: float) -> str | None:
    """The third operand of a Gemm as a bias vector when it is a constant row, else None."""
    array = None if c is None else net.known(c)
    if c is None or array is None or array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if beta == 1 and array.shape == (columns,):
        return c
    if array.size not in (1, columns):
        return None
    row = np.broadcast_to(array.reshape(-1), (columns,)) * array.dtype.type(beta)
    return net.constant(row, f"{c}.bias")


def einsum(net: Network, call: Call) -> str:
    """Einstein summation."""
    equation = str(call.required("equation")).replace(" ", "")
    return net.add(Einsum(equation), *(call.input(index) for index in range(len(call.inputs))))


LINEAR: Mapping[str, Convert] = MappingProxyType({"Einsum": einsum, "Gemm": gemm, "MatMul": matmul})
