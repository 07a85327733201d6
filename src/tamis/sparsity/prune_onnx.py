"""Prune an ONNX file by magnitude, without the model that it came from."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.errors import ConfigError, SparsityError, first_line
from tamis.formats import NM
from tamis.onnx_files import external_files
from tamis.sparsity.check import LayerCheck, Progress
from tamis.sparsity.check_onnx import check_layer, check_onnx
from tamis.sparsity.export import SparsityLost
from tamis.sparsity.layer_names import named, require_named
from tamis.sparsity.masks import as_pattern
from tamis.sparsity.onnx_edit import Uses, take_out_masks, write
from tamis.sparsity.onnx_graph import Key, Step, open_graph
from tamis.sparsity.onnx_layers import layers
from tamis.sparsity.onnx_output import onnx_output, require_free, require_place
from tamis.sparsity.prune_onnx_group import Member, OnnxPrunedLayer, Place, connected, prune_group

if TYPE_CHECKING:
    import onnx

_EXCLUDED, _NOT_CHOSEN = "excluded", "not chosen"


@dataclass(frozen=True)
class OnnxPruneReport:
    """What `prune_onnx` did, layer by layer; printed, a table."""

    path: Path
    layers: tuple[OnnxPrunedLayer, ...]

    @property
    def pruned(self) -> tuple[OnnxPrunedLayer, ...]:
        """The layers that follow the pattern."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def skipped(self) -> tuple[OnnxPrunedLayer, ...]:
        """The layers left as they were, each with its reason."""
        return tuple(layer for layer in self.layers if layer.reason is not None)

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.pruned)} layers follow the pattern, {len(self.skipped)} skipped"]
        for layer in self.layers:
            kept = "" if layer.kept is None else f", {layer.kept:.1%} of the magnitude kept"
            fate = layer.reason or f"{layer.pattern} along axis {layer.axis}{kept}"
            lines.append(f"  {layer.name} {list(layer.shape)}: {fate}")
        return "\n".join(lines)


def prune_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    output: str | os.PathLike[str],
    pattern: str | NM = "2:4",
    *,
    only: Iterable[str] = (),
    exclude: Iterable[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> OnnxPruneReport:
    """Write a copy of an ONNX model whose weights follow the pattern: the smallest of each group become zero.

    Weights are found and judged as by `check_onnx`, through whatever lies between the stored tensor and the layer. A
    quantised weight gets its zero point where it is to be zero. Parts of one stored tensor, as `Split` and `Slice` make
    them, are pruned each on its own, and so are tensors that a `Concat` joins. Masks in the graph (`Mul`, `Where`) are
    baked in and taken out. Nothing else changes: all other tensors keep their bytes. Local functions are inlined.
    Weights are not made up for: expect a loss of accuracy, and fine-tune in PyTorch where that matters.

    Args:
        model: a file, or a model with its data loaded, which stays as it is.
        output: the file to write. Large tensors go to `<output>.data` beside it if the model had external data, or is
            beyond 256 MB. It appears whole, or not at all.
        pattern: the pattern to follow.
        only: names of weights, nodes or torch modules to prune, `*` and `?` allowed; all if empty.
        exclude: those to leave dense.
        overwrite: allow `output` to be the file that is read.
        progress: called with a stage, what is done, how much there is, and a name.

    Raises:
        ConfigError: `output` or its data would replace what is read, or a name matches no layer.
        InvalidModel: the file is not an ONNX model.
        SparsityError: there is nothing to prune, or a weight holds NaN. `SparsityLost` if what was written is not what
            was wanted.
        OutputError: the file cannot be written, or `<output>.data` is there and belongs to another model.
    """
    wanted, target = as_pattern(pattern), Path(output)
    require_place(target)
    proto, root, folder = open_graph(model if isinstance(model, str | os.PathLike) else _copied(model))
    files = external_files(proto) - ({Path(model).name} if isinstance(model, str | os.PathLike) else set())
    _check_target(model, [folder / name for name in files] if folder else [], target, overwrite)
    places: list[Place] = []
    checks: list[LayerCheck] = []
    keys: list[set[Key]] = []
    for layer in layers(root, progress):
        places.append((layer.graph, layer.node))
        checks.append(check_layer(layer, wanted))
        keys.append({origin.key for origin in layer.constant.origins})
    reasons = _choose(checks, wanted, tuple(only), tuple(exclude))

    results: dict[int, OnnxPrunedLayer] = {}
    masks: list[Step] = []
    uses = Uses(root)
    groups = connected(keys)
    for done, group in enumerate(groups):
        if progress:
            progress("prune", done, len(groups), checks[group[0]].name)
        members = [Member(places[index], checks[index], reasons[index]) for index in group]
        results |= zip(group, prune_group(members, uses, wanted, masks), strict=True)
    report = OnnxPruneReport(target, tuple(result for _, result in sorted(results.items())))
    _require_pruned(report, wanted)
    take_out_masks(root, masks)
    _write_checked(model, proto, folder, report, wanted, beside=bool(files))
    return report


def _check_target(
    model: str | os.PathLike[str] | onnx.ModelProto,
    files: Sequence[Path],
    target: Path,
    overwrite: bool,
) -> None:
    if not isinstance(model, str | os.PathLike):
        return
    if target.exists() and target.samefile(model):
        if not overwrite:
            raise ConfigError(
                f"the output would replace {model}, which is read",
                remedy="choose another output path, or allow it with --overwrite (overwrite=True in Python)",
            )
        return  # the data that is replaced is the data that is read
    require_free(target, [Path(model), *files])


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _choose(
    checks: Sequence[LayerCheck], pattern: NM, only: tuple[str, ...], exclude: tuple[str, ...]
) -> list[str | None]:
    """Why each layer is not to be pruned; None where it is."""
    if not checks:
        raise SparsityError("the model has no layer with a constant weight", remedy="check which model it is")
    require_named(checks, only, "only")
    require_named(checks, exclude, "exclude")
    reasons: list[str | None] = []
    for check in checks:
        if named(check, exclude):
            reasons.append(_EXCLUDED)
        elif only and not named(check, only):
            reasons.append(_NOT_CHOSEN)
        else:
            reasons.append(None if check.fits else check.reason)
    return reasons


def _require_pruned(report: OnnxPruneReport, pattern: NM) -> None:
    if report.pruned:
        return
    count: dict[str, int] = defaultdict(int)
    for layer in report.layers:
        count[layer.reason or ""] += 1
    reasons = "; ".join(f"{number} of {len(report.layers)} layers: {reason}" for reason, number in count.items())
    raise SparsityError(
        f"nothing can be pruned to {pattern}: {reasons}", remedy="choose other layers, or a pattern that divides them"
    )


def _problem(model: str | os.PathLike[str] | onnx.ModelProto) -> str:
    """What ONNX's checker says against a model, empty if nothing; some that run everywhere lack what it demands."""
    import onnx  # noqa: PLC0415

    try:
        onnx.checker.check_model(os.fspath(model) if isinstance(model, str | os.PathLike) else model)
    except onnx.checker.ValidationError as error:
        return first_line(error)
    return ""


def _write_checked(
    model: str | os.PathLike[str] | onnx.ModelProto,
    proto: onnx.ModelProto,
    folder: Path | None,
    report: OnnxPruneReport,
    pattern: NM,
    *,
    beside: bool,
) -> None:
    """Write the model beside its place, look whether it is what was wanted, and only then put it there."""
    target = report.path
    with onnx_output(target) as draft:
        write(proto, folder, draft, beside=beside)
        if (problem := _problem(draft)) and problem != _problem(model):
            raise SparsityError(f"ONNX's checker refuses what was made: {problem}", remedy="please report it")
        for layer, check in zip(report.layers, check_onnx(draft, pattern), strict=True):
            if layer.reason is None and not check.eligible:
                raise SparsityLost(f"pruned, but in the file '{check.name}': {check.reason}", layer=layer.node)
