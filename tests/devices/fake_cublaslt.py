"""A cuBLASLt made of NumPy: it does what the documentation says to the descriptors that it is given.

It stands in for the library where there is no GPU, so that leading dimensions, transpositions, batch strides and
epilogues are checked by computing with them.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
from memory_at import TYPES, column_major, vector

EPILOGUES = {
    1: ("none", False),
    2: ("relu", False),
    4: ("none", True),
    6: ("relu", True),
    32: ("gelu", False),
    36: ("gelu", True),
}


class FakeCublasLt:
    """Offers ``algorithms`` algorithms, of which number i needs i times ``scratch`` bytes, and writes all over these.

    ``alive`` counts descriptors that were not destroyed, ``workspaces`` notes the address and bytes of each product.
    """

    def __init__(self, algorithms: int = 3, scratch: int = 1000) -> None:
        self.algorithms, self.scratch, self.objects, self.numbers = algorithms, scratch, {}, itertools.count(1)
        self.workspaces: list[tuple[int, int]] = []
        self.used: list[int] = []
        self.streams: list[int] = []

    @property
    def alive(self) -> int:
        return len(self.objects)

    def cublasLtGetStatusString(self, status: int) -> bytes:
        return f"status {status}".encode()

    def _create(self, reference: Any, made: dict[str, Any]) -> int:
        reference._obj.value = next(self.numbers)
        self.objects[reference._obj.value] = made
        return 0

    def _destroy(self, made: Any) -> int:
        del self.objects[made.value]
        return 0

    def _set(self, made: Any, attribute: int, value: Any, size: int) -> int:
        assert size == ctypes.sizeof(value._obj)
        self.objects[made.value][int(attribute)] = value._obj.value
        return 0

    def cublasLtMatmulDescCreate(self, reference: Any, compute: int, scale: int) -> int:
        return self._create(reference, {"compute": int(compute), "scale": int(scale)})

    def cublasLtMatrixLayoutCreate(self, reference: Any, kind: int, rows: int, columns: int, leading: int) -> int:
        assert leading >= rows
        return self._create(reference, {"kind": int(kind), "rows": rows, "columns": columns, "leading": leading})

    def cublasLtMatmulPreferenceCreate(self, reference: Any) -> int:
        return self._create(reference, {})

    cublasLtMatmulDescDestroy = cublasLtMatrixLayoutDestroy = cublasLtMatmulPreferenceDestroy = _destroy
    cublasLtMatmulDescSetAttribute = cublasLtMatrixLayoutSetAttribute = _set
    cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: Any, op: Any, a: Any, b: Any, c: Any, d: Any, preference: Any, most: int, results: Any, count: Any
    ) -> int:
        wanted = self.objects[preference.value]
        sixteen_bit = self.objects[d.value]["kind"] != 0
        assert wanted[1] == 32 << 20, "workspace"
        assert wanted[3] == (2 if sixteen_bit else 3), "sums must stay in float32"
        assert [wanted[i] for i in (5, 6, 7, 8)] == [16] * 4
        for i in range(min(most, self.algorithms)):
            results[i].algorithm.data[0] = 100 + i
            results[i].workspace_bytes = i * self.scratch
        count._obj.value = min(most, self.algorithms)
        return 0

    def cublasLtMatmul(
        self, handle: Any, op: Any, alpha: Any, a: int, a_layout: Any, b: int, b_layout: Any, beta: Any, c: int,
        c_layout: Any, d: int, d_layout: Any, algorithm: Any, workspace: int, size: int, stream: int,
    ) -> int:  # fmt: skip
        assert alpha._obj.value == 1.0
        self.used.append(algorithm._obj.data[0])
        self.streams.append(stream)
        assert size >= (self.used[-1] - 100) * self.scratch, "scratch memory"
        self.workspaces.append((workspace, size))
        ctypes.memset(workspace, 0xFF, size)
        operation = self.objects[op.value]
        layouts = [self.objects[x.value] for x in (a_layout, b_layout, c_layout, d_layout)]
        batch = layouts[3].get(5, 1)
        assert all(layout.get(5, 1) == batch for layout in layouts), "all layouts must agree on the batch"
        for i in range(batch):
            places = [
                column_major(
                    address + i * layout.get(6, 0) * TYPES[layout["kind"]].itemsize,
                    layout["kind"], layout["rows"], layout["columns"], layout["leading"],
                )
                for address, layout in zip((a, b, c, d), layouts, strict=True)
            ]  # fmt: skip
            left, right = (m.astype(np.float64) for m in places[:2])
            left, right = (m.T if operation[key] else m for m, key in ((left, 3), (right, 4)))
            result = left @ right
            if beta._obj.value:
                result = result + beta._obj.value * places[2].astype(np.float64)
            activation, has_bias = EPILOGUES[operation[7]]
            if has_bias:
                result = result + vector(operation[8], operation[26], result.shape[0]).astype(np.float64)[:, None]
            if activation == "relu":
                result = np.maximum(result, 0)
            if activation == "gelu":
                result = 0.5 * result * (1 + np.tanh(np.sqrt(2 / np.pi) * (result + 0.044715 * result**3)))
            places[3][...] = result.astype(places[3].dtype)
        return 0
