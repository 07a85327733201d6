"""``tamis prune``: zeros into an ONNX file, by magnitude."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.options import Json, ModelPath, read_pattern
from tamis.cli.output import labels, progress_bar, show, show_json

if TYPE_CHECKING:
    from tamis.sparsity import OnnxPrunedLayer, OnnxPruneReport


def command(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE.onnx", help="ONNX file to write.", show_default=False),
    ],
    pattern: Annotated[str, typer.Option("--pattern", metavar="N:M", help="Pattern to make.")] = "2:4",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="GLOB",
            help="Prune only layers whose weight, node or module matches. May be repeated.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Layers to leave dense. May be repeated.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow the output to replace the model.")] = False,
    json: Json = False,
) -> None:
    """Make the weights of an ONNX model sparse by magnitude: the smallest of each group become zero.

    Nothing makes up for what is lost, so compare the results; to fine-tune, prune in PyTorch with tamis.sparsity.
    """
    from tamis import sparsity

    wanted = read_pattern(pattern)
    with progress_bar(not json) as progress:
        report = sparsity.prune_onnx(
            model,
            output,
            wanted,
            only=only or (),
            exclude=exclude or (),
            overwrite=overwrite,
            progress=progress,
        )
    if json:
        show_json(_data(report, model))
    else:
        _show(report)


def _show(report: OnnxPruneReport) -> None:
    from rich.text import Text

    from tamis.report import table

    rows = [
        (
            label,
            each.op,
            str(each.axis),
            "x".join(map(str, each.shape)),
            f"{each.zeros:.1%}",
            "-" if each.kept is None else f"{each.kept:.1%}",
            _fate(each),
        )
        for label, each in zip(labels(report.layers), report.layers, strict=True)
    ]
    show(table(("weight", "kind", ">axis", "shape", ">zeros", ">kept", "result"), rows), Text())
    show(Text(f"Wrote {report.path}: {len(report.pruned)} layers pruned, {len(report.skipped)} skipped"))


def _fate(layer: OnnxPrunedLayer) -> str:
    if layer.reason is not None:
        return f"skipped: {layer.reason}"
    return str(layer.pattern) if layer.changed else f"{layer.pattern} already"


def _data(report: OnnxPruneReport, model: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "output": str(report.path),
        "layers": [
            {
                "name": each.name,
                "kind": each.op,
                "node": each.node,
                "pattern": str(each.pattern) if each.reason is None else None,
                "axis": each.axis,
                "shape": list(each.shape),
                "zeros": each.zeros,
                "kept_magnitude": each.kept,
                "changed": each.changed,
                "reason": each.reason,
            }
            for each in report.layers
        ],
    }
