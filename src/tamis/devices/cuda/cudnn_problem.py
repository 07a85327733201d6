"""What a fused convolution computes, as plain data: the key of its plans in a process and on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.formats.dtype import DType


@dataclass(frozen=True)
class Pointwise:
    """One step of the epilogue: an activation with its parameters, or ``add``, which adds the residual."""

    kind: str
    params: tuple[float, ...] = ()


@dataclass(frozen=True)
class ConvProblem:
    """``y = epilogue(conv(x, w) + bias)`` on NHWC images.

    ``image`` is [N, C, H, W] and ``weight`` [K, C / groups, R, S], both logical shapes of tensors that lie with the
    channels innermost. ``pads`` is (top, left, bottom, right). ``precision`` gives the type in memory and, with
    float32 in memory, whether products may be rounded to tf32; sums are float32 always.
    """

    image: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    precision: DType
    bias: bool
    epilogue: tuple[Pointwise, ...] = ()

    @property
    def result(self) -> tuple[int, int, int, int]:
        """[N, K, P, Q]."""
        sizes = [
            (self.image[2 + i] + self.pads[i] + self.pads[2 + i] - self.dilations[i] * (self.weight[2 + i] - 1) - 1)
            // self.strides[i]
            + 1
            for i in (0, 1)
        ]
        return (self.image[0], self.weight[0], sizes[0], sizes[1])

    @property
    def residual(self) -> bool:
        """Whether a tensor of the result's shape is added."""
        return any(step.kind == "add" for step in self.epilogue)

    def key(self) -> str:
        """Text that identifies the problem; equal problems have equal keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)


def conv_problem(
    attributes: Mapping[str, Any], image: Sequence[int], weight: Sequence[int], precision: DType, *, bias: bool
) -> ConvProblem:
    """The problem of a ``cudnn.conv`` step. ``weight`` is the shape of the packed constant, [K, R, S, C / groups]."""
    n, c, h, w = image
    k, r, s, depth = weight
    a = attributes
    top, left, bottom, right = a["pads"]
    epilogue = tuple(Pointwise(e["kind"], tuple(map(float, e["params"]))) for e in a["epilogue"])
    return ConvProblem(
        (n, c, h, w), (k, depth, r, s), (a["strides"][0], a["strides"][1]), (top, left, bottom, right),
        (a["dilations"][0], a["dilations"][1]), int(a["groups"]), DType(precision), bias, epilogue,
    )  # fmt: skip
