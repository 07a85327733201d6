"""A stand-in for the package ``cudnn``: graphs with the same calls, computed by PyTorch on the host at raw addresses.

It knows the calls that the project makes and no others, so a wrong name or argument fails. Plans are a list of
``FakePlan``; some cannot be built, some carry numerical notes.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

TYPES = {"HALF": torch.float16, "BFLOAT16": torch.bfloat16, "FLOAT": torch.float32}


@dataclass(frozen=True)
class FakePlan:
    """One entry of the heuristics' list."""

    notes: tuple[str, ...] = ()
    works: bool = True
    workspace: int = 0


class NotSupported(RuntimeError):
    """What the package raises for a graph or a plan that it does not have."""


class FakeTensor:
    """A tensor of a graph: an operand with a number, or the result of an operation."""

    def __init__(self, value: Callable[[Mapping[int, torch.Tensor]], torch.Tensor] | None = None) -> None:
        self.value = value
        self.dim: list[int] = []
        self.stride: list[int] = []
        self.uid, self.output, self.data_type = -1, False, ""

    def set_output(self, output: bool) -> FakeTensor:
        self.output = output
        return self

    def set_data_type(self, data_type: str) -> FakeTensor:
        self.data_type = data_type
        return self

    def set_dim(self, dim: list[int]) -> FakeTensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> FakeTensor:
        self.stride = stride
        return self

    def set_uid(self, uid: int) -> FakeTensor:
        self.uid = uid
        return self

    def at(self, address: int) -> torch.Tensor:
        """The host's memory at an address as this tensor."""
        kind = TYPES[self.data_type]
        count = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        raw = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
        return torch.frombuffer(raw, dtype=kind).as_strided(self.dim, self.stride)


class FakeGraph:
    """``cudnn.pygraph``."""

    def __init__(self, fake: FakeCudnn, **given: Any) -> None:
        self.fake, self.given = fake, given
        self.operands: dict[int, FakeTensor] = {}
        self.made: list[FakeTensor] = []
        self.barred: set[str] = set()
        self.limit = 1 << 62
        self.built: set[int] = set()
        self.selected = -1
        self.stored: dict[str, Any] | None = None

    def tensor(self, *, dim: list[int], stride: list[int], data_type: str, uid: int) -> FakeTensor:
        operand = FakeTensor().set_dim(dim).set_stride(stride).set_data_type(data_type).set_uid(uid)
        operand.value = lambda values: values[uid]
        assert uid not in self.operands
        self.operands[uid] = operand
        return operand

    def _new(self, function: Callable[..., torch.Tensor], *sources: FakeTensor) -> FakeTensor:
        result = FakeTensor(lambda values: function(*(source.value(values) for source in sources)))  # type: ignore[misc]
        self.made.append(result)
        return result

    def conv_fprop(
        self,
        *,
        image: FakeTensor,
        weight: FakeTensor,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
        compute_data_type: str,
    ) -> FakeTensor:
        assert compute_data_type == "FLOAT"
        groups = image.dim[1] // weight.dim[1]
        around = (pre_padding[1], post_padding[1], pre_padding[0], post_padding[0])

        def compute(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(functional.pad(x, around), w, None, stride, 0, dilation, groups)

        return self._new(compute, image, weight)

    def add(self, *, a: FakeTensor, b: FakeTensor) -> FakeTensor:
        return self._new(torch.add, a, b)

    def relu(self, x: FakeTensor, lower_clip: float | None = None, upper_clip: float | None = None) -> FakeTensor:
        return self._new(lambda v: v.clamp(lower_clip or 0.0, upper_clip), x)

    def leaky_relu(self, x: FakeTensor, negative_slope: float) -> FakeTensor:
        return self._new(lambda v: functional.leaky_relu(v, negative_slope), x)

    def swish(self, x: FakeTensor, swish_beta: float) -> FakeTensor:
        return self._new(lambda v: v * torch.sigmoid(swish_beta * v), x)

    def sigmoid(self, x: FakeTensor) -> FakeTensor:
        return self._new(torch.sigmoid, x)

    def tanh(self, x: FakeTensor) -> FakeTensor:
        return self._new(torch.tanh, x)

    def gelu(self, x: FakeTensor) -> FakeTensor:
        return self._new(functional.gelu, x)

    def gelu_approx_tanh(self, x: FakeTensor) -> FakeTensor:
        return self._new(lambda v: functional.gelu(v, approximate="tanh"), x)

    def validate(self) -> None:
        assert self.given["intermediate_data_type"] == self.given["compute_data_type"] == "FLOAT"
        assert sum(t.output for t in self.made) == 1
        if self.fake.refuses:
            raise NotSupported("the graph is not supported\nand more words")

    def build_operation_graph(self) -> None:
        self.fake.graphs.append(self)

    def create_execution_plans(self, modes: Sequence[str]) -> None:
        assert list(modes) == ["A", "FALLBACK"]
        if not self.fake.plans:
            raise NotSupported("no engine proposed a plan")

    def deselect_numeric_notes(self, notes: Sequence[str]) -> None:
        self.barred |= set(notes)

    def deselect_workspace_greater_than(self, size: int) -> None:
        self.limit = size

    def get_execution_plan_count(self) -> int:
        return len(self.fake.plans)

    def build_plan_at_index(self, index: int) -> None:
        plan = self.fake.plans[index]
        if not plan.works or self.barred & set(plan.notes) or plan.workspace > self.limit:
            raise NotSupported("Deselecting execution plan")
        self.fake.builds += index not in self.built
        self.built.add(index)
        self.selected = index

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return self.fake.plans[index].workspace

    def get_workspace_size(self) -> int:
        assert self.stored is not None
        return int(self.stored["workspace"])

    def serialize(self, *, as_bytes: bool) -> bytes:
        assert as_bytes
        if not self.fake.serializes:
            raise RuntimeError("this engine cannot be serialized")
        number = self.fake.graphs.index(self)
        plan = self.fake.plans[self.selected]
        return json.dumps({"graph": number, "index": self.selected, "workspace": plan.workspace}).encode()

    def deserialize(self, handle: object, data: bytes) -> None:
        assert handle == "handle"
        try:
            self.stored = json.loads(data)
        except ValueError as error:
            raise RuntimeError("parse error") from error

    def execute(self, addresses: Mapping[int, int], workspace: int, handle: object) -> None:
        assert self.stored is not None
        original = self.fake.graphs[self.stored["graph"]]
        original.execute_plan_at_index(addresses, workspace, index=self.stored["index"], handle=handle)

    def execute_plan_at_index(self, addresses: Mapping[int, int], workspace: int, index: int, handle: object) -> None:
        assert handle == "handle"
        assert index in self.built
        ctypes.memset(workspace, 0xFF, self.fake.plans[index].workspace)  # it is there, and holds nothing of value
        self.fake.workspaces.append(workspace)
        assert self.fake.streams, "the handle has no stream yet"
        (result,) = (t for t in self.made if t.output)
        assert set(addresses) == {*self.operands, result.uid}
        values = {uid: operand.at(addresses[uid]).double() for uid, operand in self.operands.items()}
        assert result.value is not None
        result.at(addresses[result.uid]).copy_(result.value(values))
        self.fake.executed.append(index)


class FakeCudnn:
    """The package."""

    cudnnGraphNotSupportedError = NotSupported
    __version__ = "1.0"
    data_type = SimpleNamespace(HALF="HALF", BFLOAT16="BFLOAT16", FLOAT="FLOAT")
    heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    numerical_note = SimpleNamespace(
        DOWN_CONVERT_INPUTS="DOWN_CONVERT_INPUTS",
        NONDETERMINISTIC="NONDETERMINISTIC",
        REDUCED_PRECISION_REDUCTION="REDUCED_PRECISION_REDUCTION",
        TENSOR_CORE="TENSOR_CORE",
    )

    def __init__(self, *plans: FakePlan, refuses: bool = False, serializes: bool = True, version: int = 91900) -> None:
        self.version = version
        self.plans, self.refuses, self.serializes = plans, refuses, serializes
        self.graphs: list[FakeGraph] = []
        self.builds = 0
        self.executed: list[int] = []
        self.streams: list[int] = []
        self.workspaces: list[int] = []

    def backend_version(self) -> int:
        return self.version

    def pygraph(self, **given: Any) -> FakeGraph:
        return FakeGraph(self, **given)

    def set_stream(self, *, handle: object, stream: int) -> None:
        assert handle == "handle"
        self.streams.append(stream)
