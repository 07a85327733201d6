"""``tamis check``: which weights of a file or a model follow a sparsity pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.cli.options import Json, read_pattern
from tamis.cli.output import complain, labels, progress_bar, show, show_json
from tamis.errors import ConfigError, InvalidModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tamis.sparsity import FileCheck, LayerCheck

_REQUIRE = ("all", "any", "none")
_NOT_MET = 1


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="ONNX file, .safetensors file, PyTorch state dict or checkpoint; or package.module:name of a "
            "torch module or of a function that makes one, whose code is then run.",
            show_default=False,
        ),
    ],
    pattern: Annotated[str, typer.Option("--pattern", metavar="N:M", help="Pattern to look for.")] = "2:4",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="GLOB",
            help="Look only at layers whose weight, node or module matches. May be repeated.",
            show_default=False,
        ),
    ] = None,
    allow_dense: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-dense",
            metavar="GLOB",
            help="Layers that may be dense on purpose. May be repeated.",
            show_default=False,
        ),
    ] = None,
    require: Annotated[
        str,
        typer.Option(
            "--require",
            metavar="all|any|none",
            help="Exit code 1 unless all layers that can follow the pattern do, or any; none: report only.",
        ),
    ] = "all",
    json: Json = False,
) -> None:
    """Show which layers follow a sparsity pattern along the axis that counts; exit code 1 when some do not.

    Layers that cannot follow it, such as depthwise convolutions, do not count.
    """
    from tamis import sparsity

    if require not in _REQUIRE:
        raise ConfigError(f"--require '{require}' is unknown", remedy="choose among all, any and none")
    wanted = read_pattern(pattern)
    with progress_bar(not json) as progress:
        found = _check(model, wanted, progress)
    sparsity.require_named(found.layers, layer or (), "--layer")
    sparsity.require_named(found.layers, allow_dense or (), "--allow-dense")
    layers = [each for each in found.layers if not layer or sparsity.named(each, layer)]
    allowed = [each.fits and not each.eligible and sparsity.named(each, allow_dense or ()) for each in layers]
    met = _is_met(layers, allowed, require)
    if json:
        show_json(_data(model, str(wanted), require, met, found, layers, allowed))
    else:
        _show(str(wanted), found, layers, allowed)
    if not met:
        raise typer.Exit(_NOT_MET)


def _check(model: str, wanted: Any, progress: Any) -> FileCheck:
    """Check what is named: a file, unless it is the import string of a module."""
    from pathlib import Path

    from tamis import sparsity
    from tamis.cli.torch_module import import_module, is_import_string

    if Path(model).exists() or not is_import_string(model):
        return sparsity.check_file(model, wanted, progress=progress)
    complain(f"Running the code of {model}")
    checks = sparsity.check_module(import_module(model), wanted, progress=progress)
    if not checks:
        raise InvalidModel(f"{model} has no linear, convolution or attention layer", remedy="check which model it is")
    return sparsity.FileCheck("module", checks)


def _is_met(layers: Sequence[LayerCheck], allowed: Sequence[bool], require: str) -> bool:
    """Whether the layers are as required; layers of which none can follow the pattern never are, unless by none."""
    if require == "none":
        return True
    holds = [each.eligible for each in layers]
    if require == "any":
        return any(holds)
    counted = [each.eligible or dense for each, dense in zip(layers, allowed, strict=True) if each.fits]
    return bool(counted) and all(counted)


def _verdict(layer: LayerCheck, pattern: str, allowed: bool) -> str:
    if layer.eligible:
        return f"follows {pattern}"
    if not layer.fits:
        return f"cannot: {layer.reason}"
    return f"dense on purpose: {layer.reason}" if allowed else f"NO: {layer.reason}"


def _show(pattern: str, found: FileCheck, layers: Sequence[LayerCheck], allowed: Sequence[bool]) -> None:
    from rich.text import Text

    from tamis.report import table

    rows = [
        (
            label,
            each.op or "-",
            str(each.axis),
            "x".join(map(str, each.shape)),
            f"{each.zeros:.1%}",
            str(each.found or "-"),
            _verdict(each, pattern, dense),
        )
        for label, each, dense in zip(labels(layers), layers, allowed, strict=True)
    ]
    show(table(("weight", "kind", ">axis", "shape", ">zeros", "found", f"{pattern}?"), rows), Text())
    for note in (*found.notes, *_caution(found)):
        show(Text(f"Note: {note}"))
    show(Text(_summary(pattern, layers, allowed)))


def _caution(found: FileCheck) -> tuple[str, ...]:
    if found.kind not in ("torch", "safetensors"):
        return ()
    return ("weights alone do not say what their layers are; leave embeddings out with --allow-dense",)


def _summary(pattern: str, layers: Sequence[LayerCheck], allowed: Sequence[bool]) -> str:
    able = [each for each in layers if each.fits]
    text = f"{sum(each.eligible for each in able)} of {len(able)} layers that can follow {pattern} do"
    if any(allowed):
        text += f", {sum(allowed)} may be dense"
    return f"{text}; {len(layers) - len(able)} cannot"


def _data(
    model: str,
    pattern: str,
    require: str,
    met: bool,
    found: FileCheck,
    layers: Sequence[LayerCheck],
    allowed: Sequence[bool],
) -> dict[str, Any]:
    return {
        "model": model,
        "kind": found.kind,
        "pattern": pattern,
        "require": require,
        "met": met,
        "layers": [
            {
                "name": each.name,
                "kind": each.op,
                "node": each.node,
                "module": each.scope,
                "axis": each.axis,
                "shape": list(each.shape),
                "zeros": each.zeros,
                "found": str(each.found) if each.found else None,
                "violating": 1.0 - each.groups if each.fits else None,
                "first_violation": list(each.first) if each.first is not None else None,
                "can_follow": each.fits,
                "follows": each.eligible,
                "dense_on_purpose": dense,
                "reason": each.reason,
            }
            for each, dense in zip(layers, allowed, strict=True)
        ],
        "notes": [*found.notes, *_caution(found)],
    }
