"""Export a model of the collection as ONNX, dense or 2:4."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from models.catalogue import get
from models.conditioning import calibrate
from models.spec import ModelSpec
from tamis.sparsity import ExportReport, export_onnx, finalize, prune

DENSE = "dense"


def build(name: str, sparsity: str = "2:4") -> tuple[ModelSpec, nn.Module]:
    """A model of the collection, pruned by magnitude along the reduction axes; zeros baked in.

    Args:
        name: of the model.
        sparsity: an N:M pattern, or `"dense"`.
    """
    spec = get(name)
    model = spec.build()
    if sparsity != DENSE:
        prune(model, sparsity)
        if spec.calibration is not None:
            calibrate(model, spec.calibration())
        finalize(model)
    return spec, model


def export(
    name: str, path: str | Path, batch: int = 1, sparsity: str = "2:4", *, compare: bool | None = None
) -> ExportReport:
    """Write a model as ONNX for one batch size; the same call gives the same weights every time.

    Args:
        name: of the model.
        path: the file to write.
        batch: the batch size, fixed in the file.
        sparsity: an N:M pattern for all layers it fits, or `"dense"`.
        compare: compare the file's outputs with torch in ONNX Runtime; None: if it is installed.
    """
    spec, model = build(name, sparsity)
    inputs = spec.inputs(batch)
    report = export_onnx(
        model,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=spec.outputs,
        pattern="2:4" if sparsity == DENSE else sparsity,
        compare=compare,
        tolerance=1e-4,
    )
    eligible = sum(layer.eligible for layer in report.layers)
    if sparsity != DENSE and not eligible:
        raise RuntimeError(f"no layer of '{name}' is {sparsity}")
    return report
