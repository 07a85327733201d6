"""What the kernels of a GPU do with strides, where that is not what PyTorch's do on every device.

In PyTorch's sources the memory-efficient attention, which takes masks and float32, allocates its result as
[B, S, H, D]; FlashAttention and cuDNN allocate theirs in the order of the queries. PyTorch chooses among them, so for
``aten.attention`` this is a forecast of the choice too. A wrong one costs a copy and nothing else: who reads such a
value reads any strides, and a step that must hand out dense values makes sure of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tamis.devices.aten import strides as aten
from tamis.devices.cuda import attention
from tamis.devices.strides import Strides, in_order_of
from tamis.engine.plan import Step
from tamis.formats.dtype import DType

# PyTorch pads heads of other sizes, and its results are then cut out of wider ones.
_HEAD_MULTIPLE = 8


def reads_strided(step: Step, index: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a step reads its input ``index`` in place when it has these strides."""
    if step.kernel != attention.KERNEL:
        return aten.reads_strided(step, index, shape, strides)
    used = [place for place, name in enumerate(step.attributes["arguments"]) if name == f"in{index}"]
    return bool(used) and used[-1] < 3 and attention.takes(strides)  # the mask comes fourth, and dense


def natural_strides(step: Step, shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> Strides | None:
    """How a kernel leaves its result when nobody asks for a dense one; None for unknown."""
    if step.kernel not in ("aten.attention", attention.KERNEL):
        return None
    queries = aten.queries_of(step, shapes)
    if queries is None or shapes[queries][-1] % _HEAD_MULTIPLE:
        return None
    if step.kernel == "aten.attention" and (step.attributes.get("mask") or step.precision == DType.FLOAT32):
        return aten.by_token(shapes[queries])
    return in_order_of(shapes[queries], strides[queries])
