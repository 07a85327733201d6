"""What an engine holds, in numbers and as plain data, without the device it was built for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tamis.engine.file import Engine
from tamis.engine.plan import LayerRecord, to_json


@dataclass(frozen=True)
class Summary:
    """Numbers about an engine; sizes in bytes, FLOPs for one run.

    ``arena_bytes`` is the block that the runtime allocates for activations, ``peak_bytes`` the most bytes of
    activations that live at one time, wherever they lie.
    """

    weight_bytes: int
    arena_bytes: int
    peak_bytes: int
    steps: int
    layers: int
    flops: int
    kernels: dict[str, int]
    precisions: dict[str, int]
    sparsities: dict[str, int]
    eligible_layers: tuple[str, ...]
    sparse_layers: tuple[str, ...]


def summarize(engine: Engine) -> Summary:
    """Count what an engine holds."""
    plan = engine.plan
    return Summary(
        weight_bytes=sum(int(array.nbytes) for array in engine.tensors.values()),
        arena_bytes=plan.arena_bytes,
        peak_bytes=plan.peak_bytes,
        steps=len(plan.steps),
        layers=len(plan.layers),
        flops=sum(step.flops for step in plan.steps),
        kernels=_counted(step.kernel for step in plan.steps),
        precisions=_counted(str(step.precision) for step in plan.steps),
        sparsities=_counted(step.sparsity for step in plan.steps),
        eligible_layers=tuple(layer.name for layer in plan.layers if layer.eligible),
        sparse_layers=tuple(layer.name for layer in plan.layers if is_sparse(layer)),
    )


def is_sparse(layer: LayerRecord) -> bool:
    """Whether the layer runs with a sparse kernel."""
    return layer.chosen_sparsity != "dense"


def tactic_text(tactic: str, parameters: Mapping[str, Any]) -> str:
    """A tactic with its parameters, such as ``cublaslt (gelu=tanh, rank=3)``."""
    text = ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
    return f"{tactic} ({text})" if text else tactic


def describe(engine: Engine) -> dict[str, Any]:
    """Everything about an engine but the values of its tensors, as data that ``json.dumps`` accepts."""
    summary = summarize(engine)
    return {
        "plan": json.loads(to_json(engine.plan)),
        "summary": {name: list(value) if isinstance(value, tuple) else value for name, value in vars(summary).items()},
        "tensors": {
            name: {"shape": list(array.shape), "dtype": array.dtype.name, "bytes": int(array.nbytes)}
            for name, array in sorted(engine.tensors.items())
        },
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
