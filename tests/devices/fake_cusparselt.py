"""A cuSPARSELt made of NumPy: it does what the documentation says to the structures that it is given.

Its compressed form is the dense weight with its bytes reversed, so that a weight that was not compressed shows.
Structures must be 16-byte aligned and must not be used after they were destroyed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from memory_at import TYPES, column_major, vector

ROW, COLUMN = 2, 1


class FakeCusparseLt:
    """Offers ``algorithms`` algorithms. ``alive`` counts structures that were made and not destroyed.

    A product with a split k writes all over its scratch memory, whose address ``workspaces`` notes.
    """

    def __init__(self, algorithms: int = 36) -> None:
        self.algorithms, self.made = algorithms, {}
        self.used: list[tuple[int, int, int]] = []
        self.streams: list[int] = []
        self.workspaces: list[int] = []
        for name in ("MatDescriptor", "MatmulAlgSelection", "MatmulPlan"):
            setattr(self, f"cusparseLt{name}Destroy", self._destroy)

    @property
    def alive(self) -> int:
        return sum(1 for structure in self.made.values() if structure["kind"] != "matmul")

    def cusparseLtGetErrorString(self, status: int) -> bytes:
        return f"status {status}".encode()

    def _scratch(self, plan: int) -> int:
        parts: int = self.made[plan]["selection"]["set"][3]
        return 128 * parts if parts > 1 else 0

    def _make(self, address: int, **fields: Any) -> int:
        assert address % 16 == 0
        self.made[address] = fields
        return 0

    def _destroy(self, address: int) -> int:
        del self.made[address]
        return 0

    def cusparseLtDenseDescriptorInit(
        self, handle: int, made: int, rows: int, columns: int, leading: int, alignment: int, kind: int, order: int
    ) -> int:
        assert alignment == 16
        if rows % 8 or columns % 8 or leading % 8:
            return 3
        assert leading >= (columns if order == ROW else rows)
        return self._make(made, kind="matrix", type=int(kind), rows=rows, columns=columns, leading=leading, order=order)

    def cusparseLtStructuredDescriptorInit(
        self,
        handle: int,
        made: int,
        rows: int,
        columns: int,
        leading: int,
        alignment: int,
        kind: int,
        order: int,
        sparsity: int,
    ) -> int:
        assert sparsity == 0
        if rows % 16 or columns % 16 or leading % 16:
            return 3
        return self.cusparseLtDenseDescriptorInit(handle, made, rows, columns, leading, alignment, kind, order)

    def cusparseLtMatmulDescriptorInit(
        self, handle: int, made: int, op_a: int, op_b: int, a: int, b: int, c: int, d: int, compute: int
    ) -> int:
        assert compute == 2
        matrices = tuple(self.made[each] for each in (a, b, c, d))
        return self._make(made, kind="matmul", ops=(op_a, op_b), matrices=matrices, set={})

    def cusparseLtMatmulDescSetAttribute(self, handle: int, made: int, attribute: int, value: Any, size: int) -> int:
        assert size == ctypes.sizeof(value._obj) == (8 if attribute == 8 else 4)
        self.made[made]["set"][int(attribute)] = value._obj.value
        return 0

    def cusparseLtMatmulAlgSelectionInit(self, handle: int, made: int, matmul: int, algorithm: int) -> int:
        assert algorithm == 0
        assert self.made[matmul]["kind"] == "matmul"
        return self._make(made, kind="selection", set={0: 0, 3: 1, 4: 0})

    def cusparseLtMatmulAlgGetAttribute(self, handle: int, made: int, attribute: int, value: Any, size: int) -> int:
        assert (attribute, size) == (1, 4)
        value._obj.value = self.algorithms
        return 0

    def cusparseLtMatmulAlgSetAttribute(self, handle: int, made: int, attribute: int, value: Any, size: int) -> int:
        assert size == 4
        if attribute == 0 and value._obj.value >= self.algorithms:
            return 3
        self.made[made]["set"][int(attribute)] = value._obj.value
        return 0

    def cusparseLtMatmulPlanInit(self, handle: int, made: int, matmul: int, selection: int) -> int:
        return self._make(made, kind="plan", matmul=self.made[matmul], selection=self.made[selection])

    def cusparseLtMatmulGetWorkspace(self, handle: int, plan: int, size: Any) -> int:
        size._obj.value = self._scratch(plan)
        return 0

    def cusparseLtSpMMACompressedSize2(self, handle: int, matrix: int, size: Any, scratch: Any) -> int:
        size._obj.value, scratch._obj.value = self.made[matrix]["rows"] * self.made[matrix]["columns"] * 2, 16
        return 0

    def cusparseLtSpMMACompress2(
        self, handle: int, matrix: int, is_a: int, op: int, dense: int, compressed: int, scratch: int, stream: int
    ) -> int:
        assert (is_a, op) == (1, 0)
        m = self.made[matrix]
        weight = column_major(dense, m["type"], m["columns"], m["rows"], m["leading"]).T
        assert ((weight != 0).reshape(m["rows"], -1, 4).sum(-1) <= 2).all(), "the weight is not 2:4"
        size = weight.size * 2
        target = np.frombuffer((ctypes.c_uint8 * size).from_address(compressed), np.uint8)
        target[:] = np.ascontiguousarray(weight).view(np.uint8).reshape(-1)[::-1]
        return 0

    def cusparseLtMatmul(
        self,
        handle: int,
        plan: int,
        alpha: Any,
        a: int,
        b: int,
        beta: Any,
        c: int,
        d: int,
        workspace: int,
        streams: Any,
        count: int,
    ) -> int:
        assert count == 1
        assert alpha._obj.value == 1.0
        self.streams.append(streams._obj.value)
        self.workspaces.append(workspace)
        ctypes.memset(workspace, 0xFF, self._scratch(plan))
        matmul, chosen = self.made[plan]["matmul"], self.made[plan]["selection"]["set"]
        self.used.append((chosen[0], chosen[3], chosen[4]))
        weight, inputs, added, result = matmul["matrices"]
        assert matmul["ops"] == (0, 1)
        raw = np.frombuffer((ctypes.c_uint8 * (weight["rows"] * weight["columns"] * 2)).from_address(a), np.uint8)
        left = raw[::-1].copy().view(TYPES[weight["type"]]).reshape(weight["rows"], weight["columns"])
        product = left.astype(np.float64) @ _dense(b, inputs).astype(np.float64).T
        if beta._obj.value:
            product = product + beta._obj.value * _dense(c, added).astype(np.float64)
        if 8 in matmul["set"]:
            product = product + vector(matmul["set"][8], result["type"], result["rows"]).astype(np.float64)[:, None]
        if matmul["set"].get(0):
            product = np.clip(product, 0, matmul["set"].get(1, np.inf))
        target = _dense(d, result)
        target[...] = product.astype(target.dtype)
        return 0


def _dense(address: int, matrix: dict[str, Any]) -> np.ndarray:
    if matrix["order"] == COLUMN:
        return column_major(address, matrix["type"], matrix["rows"], matrix["columns"], matrix["leading"])
    return column_major(address, matrix["type"], matrix["columns"], matrix["rows"], matrix["leading"]).T
