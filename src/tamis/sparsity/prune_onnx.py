"""Prune an ONNX file by magnitude, without the model that it came from."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.errors import ConfigError, SparsityError, first_line
from tamis.formats import NM, is_nm
from tamis.onnx_files import external_files
from tamis.sparsity.check import LayerCheck, Progress
from tamis.sparsity.check_onnx import check_layer, check_onnx
from tamis.sparsity.export import SparsityLost
from tamis.sparsity.layer_names import named, require_named
from tamis.sparsity.masks import as_pattern, magnitude_mask
from tamis.sparsity.onnx_edit import Uses, store, take_out_masks, write
from tamis.sparsity.onnx_graph import OnnxGraph, Step, open_graph
from tamis.sparsity.onnx_layers import OnnxLayer, layer_of, layers
from tamis.sparsity.onnx_masks import stored_mask
from tamis.sparsity.onnx_output import onnx_output, require_free

if TYPE_CHECKING:
    import onnx

_EXCLUDED, _NOT_CHOSEN = "excluded", "not chosen"


@dataclass(frozen=True)
class OnnxPrunedLayer:
    """What happened to the weight of one layer of an ONNX file.

    Attributes:
        name: of the stored tensor.
        op: the operator of the layer.
        node: the name of its node.
        pattern: the pattern asked for.
        axis: the reduction axis of the weight as the layer sees it.
        shape: the shape of the weight as the layer sees it.
        zeros: the fraction of its elements that are zero now, 0 to 1.
        kept: the share of the sum of all magnitudes that is left, 0 to 1; None where there is no such sum.
        reason: why it was skipped; None if it follows the pattern.
        changed: whether its zeros were made now: they were neither there nor made by a mask in the graph.
    """

    name: str
    op: str
    node: str
    pattern: NM
    axis: int
    shape: tuple[int, ...]
    zeros: float
    kept: float | None
    reason: str | None
    changed: bool


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
    quantised weight gets its zero point where it is to be zero. Masks in the graph (`Mul`, `Where`) are baked in and
    taken out. Nothing else changes: all other tensors keep their bytes. Local functions are inlined. Weights are not
    made up for: expect a loss of accuracy, and fine-tune in PyTorch where that matters.

    Args:
        model: a file, or a model with its data loaded, which stays as it is.
        output: the file to write. Large tensors go to `<output>.data` beside it if the model had external data, or is
            beyond 1.5 GB. It appears whole, or not at all.
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
    proto, root, folder = open_graph(model if isinstance(model, str | os.PathLike) else _copied(model))
    _check_target(model, proto, folder, target, overwrite)
    places: list[tuple[OnnxGraph, onnx.NodeProto]] = []
    checks: list[LayerCheck] = []
    sources: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, layer in enumerate(layers(root, progress)):
        places.append((layer.graph, layer.node))
        checks.append(check_layer(layer, wanted))
        sources[id(layer.constant.home), layer.constant.source].append(index)
    reasons = _choose(checks, wanted, tuple(only), tuple(exclude))

    results: dict[int, OnnxPrunedLayer] = {}
    masks: list[Step] = []
    uses = Uses(root)
    for done, ((_, source), members) in enumerate(sources.items()):
        if progress:
            progress("prune", done, len(sources), source)
        reason = _sharing_reason([checks[index] for index in members], [reasons[index] for index in members])
        pruned = reason or _prune_source([places[index] for index in members], uses, wanted, masks)
        for place, index in enumerate(members):
            if isinstance(pruned, str):
                results[index] = _skipped(checks[index], wanted, reasons[index] or pruned)
            else:
                results[index] = pruned[place]
    report = OnnxPruneReport(target, tuple(result for _, result in sorted(results.items())))
    _require_pruned(report, wanted)
    take_out_masks(root, masks)
    _write_checked(model, proto, folder, report, wanted)
    return report


def _check_target(
    model: str | os.PathLike[str] | onnx.ModelProto,
    proto: onnx.ModelProto,
    folder: Path | None,
    target: Path,
    overwrite: bool,
) -> None:
    if folder is None or not isinstance(model, str | os.PathLike):
        return
    if target.exists() and target.samefile(model):
        if not overwrite:
            raise ConfigError(
                f"the output would replace {model}, which is read",
                remedy="choose another output path, or allow it with overwrite",
            )
        return  # the data that is replaced is the data that is read
    require_free(target, [Path(model), *(folder / name for name in external_files(proto))])


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


def _sharing_reason(checks: Sequence[LayerCheck], reasons: Sequence[str | None]) -> str | None:
    """Why the layers of one stored tensor all stay as they are, because one of them does."""
    for check, reason in zip(checks, reasons, strict=True):
        if reason is not None:
            return reason if len(checks) == 1 else f"shares its weight with node '{check.node}': {reason}"
    return None


def _prune_source(
    places: Sequence[tuple[OnnxGraph, onnx.NodeProto]], uses: Uses, pattern: NM, masks: list[Step]
) -> list[OnnxPrunedLayer] | str:
    """Prune the stored tensor behind the layers at `places`, or say why it is left as it is.

    The nodes that masked it are added to `masks`.
    """
    group = [layer for place in places if (layer := layer_of(*place)) is not None]
    home, source = group[0].constant.home, group[0].constant.source
    tensor = home.stored(source)
    if tensor is None:
        return "its weight is not a plain stored tensor"
    if other := uses.other_than([(layer.node, layer.port) for layer in group], (id(home), source)):
        return f"its weight '{source}' is {other}"
    views = [layer.weight for layer in group]
    for layer, view in zip(group, views, strict=True):
        if bool(np.isnan(view.astype(np.float32)).any()):
            raise SparsityError(
                f"its weight '{source}' holds NaN", layer=layer.node.name, remedy="mend the model, or exclude the layer"
            )
    if _all_hold(group, views, pattern) and not any(layer.constant.masked_by for layer in group):
        return [_pruned(layer, view, view, pattern) for layer, view in zip(group, views, strict=True)]
    stored = home.constant(source)
    assert stored is not None
    problem = ""
    for layer, view in zip(group, views, strict=True):
        mask = stored_mask(layer, _keep(view, pattern, layer.axis))
        if isinstance(mask, str):
            problem = mask
            continue
        changed = mask.applied(stored.value)
        after = [each.changed({(id(home), source): changed}) for each in group]
        if all(map(_is_pruned, views, after)) and _all_hold(group, after, pattern):
            store(tensor, changed)
            masks += [step for each in group if each.constant.masked_by for step in each.constant.steps]
            return [_pruned(*each, pattern) for each in zip(group, views, after, strict=True)]
        axes = " and ".join(f"axis {each.axis} of '{each.node.name}'" for each in group)
        problem = f"shared by layers whose masks do not agree: {axes}"
        if len(group) == 1:
            problem = f"zeros in '{source}' would change more of what the layer sees"
    return problem


def _all_hold(group: Sequence[OnnxLayer], views: Sequence[NDArray[np.generic]], pattern: NM) -> bool:
    """Whether every layer of a group sees the pattern in its weight."""
    return all(is_nm(np.asarray(view != 0), pattern, layer.axis) for layer, view in zip(group, views, strict=True))


def _keep(view: NDArray[np.generic], pattern: NM, axis: int) -> NDArray[np.bool_]:
    """Where the weight stays: the largest of each group, and what a mask in the graph has left of them."""
    numbers = view if view.dtype == np.float64 else view.astype(np.float32)
    largest = magnitude_mask(torch.from_numpy(np.ascontiguousarray(numbers)), pattern, axis).numpy()
    return np.asarray(largest & (numbers != 0))


def _is_pruned(before: NDArray[np.generic], after: NDArray[np.generic]) -> bool:
    """Whether elements became zero and nothing else changed."""
    return bool(((after == before) | (after == 0)).all())


def _pruned(layer: OnnxLayer, before: NDArray[np.generic], after: NDArray[np.generic], pattern: NM) -> OnnxPrunedLayer:
    total = float(np.abs(before.astype(np.float64)).sum())
    left = float(np.abs(after.astype(np.float64)).sum())
    return OnnxPrunedLayer(
        name=layer.constant.source,
        op=layer.node.op_type,
        node=layer.node.name,
        pattern=pattern,
        axis=layer.axis,
        shape=tuple(before.shape),
        zeros=1.0 - float(np.count_nonzero(after != 0)) / max(after.size, 1),
        kept=left / total if 0 < total < float("inf") else None,
        reason=None,
        changed=bool((after != before).any()),
    )


def _skipped(check: LayerCheck, pattern: NM, reason: str) -> OnnxPrunedLayer:
    return OnnxPrunedLayer(
        check.name, check.op, check.node, pattern, check.axis, check.shape, check.zeros, None, reason, False
    )


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
) -> None:
    """Write the model beside its place, look whether it is what was wanted, and only then put it there."""
    target = report.path
    with onnx_output(target) as draft:
        write(proto, folder, draft)
        if (problem := _problem(draft)) and problem != _problem(model):
            raise SparsityError(f"ONNX's checker refuses what was made: {problem}", remedy="please report it")
        for layer, check in zip(report.layers, check_onnx(draft, pattern), strict=True):
            if layer.reason is None and not check.eligible:
                raise SparsityLost(f"pruned, but in the file '{check.name}': {check.reason}", layer=layer.node)
