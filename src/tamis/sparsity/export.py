"""Write a pruned torch model as ONNX, and prove that the zeros arrived.

The file is an ordinary dense model whose weights hold zeros. What can go wrong on the way is caught here:
masks that stay a multiplication in the graph, weights moved to another layout, a file that computes something
else.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.onnx import OnnxExporterError
from torch.utils import _pytree

from tamis.errors import ConfigError, SparsityError, UnsupportedModel, first_line
from tamis.formats import NM
from tamis.sparsity.check import LayerCheck, check_module
from tamis.sparsity.check_onnx import check_onnx
from tamis.sparsity.computed import detach_computed, remove_norms
from tamis.sparsity.hold import bake_parametrizations, finalize
from tamis.sparsity.masks import as_pattern, prunable
from tamis.sparsity.onnx_output import onnx_output, require_place

OPSET = 20
_REGISTRATION_LOGGER = "torch.onnx._internal.exporter._registration"
_ANY_SIZE = 2**62
_ONE_FILE_BYTES = 1_500_000_000  # a protobuf file ends at 2 GiB; stay clear of it


class SparsityLost(SparsityError):
    """A pruned weight is no longer sparse in the exported file."""


class ExportMismatch(SparsityError):
    """The exported file computes something else than the torch model."""


@dataclass(frozen=True)
class ExportReport:
    """What was written; printed, how many layers are sparse and why others are not.

    Attributes:
        path: the ONNX file.
        layers: every layer of the file that has a weight, as `check_onnx` sees it.
        unused: pruned weights that the forward pass does not use and the file does not contain.
        max_error: largest difference from torch over the largest magnitude of the output; None if not
        compared.
    """

    path: Path
    layers: tuple[LayerCheck, ...]
    unused: tuple[str, ...]
    max_error: float | None

    def __str__(self) -> str:
        able = [layer for layer in self.layers if layer.fits]
        sparse = sum(layer.eligible for layer in able)
        lines = [f"Wrote {self.path}: {sparse} of {len(able)} layers that can be sparse are"]
        lines += [f"  {layer.name}: {layer.reason}" for layer in self.layers if layer.reason]
        lines += [f"  {name}: pruned, but not used" for name in self.unused]
        return "\n".join(lines)


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    pattern: str | NM = "2:4",
    compare: bool | None = None,
    tolerance: float = 1e-3,
) -> ExportReport:
    """Export `model` in eval mode with its zeros baked in; the model itself is left as it is.

    The file appears under `path` only if every weight that followed the pattern in torch follows it in the
    file, and the outputs agree. Weights that the model itself multiplies by masks are stored as products. Weights
    beyond 1.5 GB go to `<path>.data` beside it. Opset 20.

    Args:
        model: pruned by `prune`, finalized or not, or by any other tool that has baked its zeros in.
        args: example inputs, positional; with `kwargs` those by name.
        path: the file to write, replaced if it exists.
        input_names: of the graph, in the order of `args` then `kwargs`.
        output_names: of the graph.
        dynamic_shapes: as `torch.onnx.export` takes it; static shapes if None.
        pattern: the pattern to preserve.
        compare: run the file with ONNX Runtime and compare with torch; None: if ONNX Runtime is installed and the
            model has no bfloat16, which it does not take.
        tolerance: the largest difference allowed, relative to the largest magnitude of each output.

    Raises:
        SparsityLost: a weight is sparse in torch but not in the file.
        ExportMismatch: the file's outputs differ from torch's, or ONNX Runtime cannot run it.
        UnsupportedModel: PyTorch's exporter cannot trace the model.
        ConfigError: `compare` was asked for without ONNX Runtime, or for bfloat16.
        OutputError: the file cannot be written, or `<path>.data` is there and belongs to another model.
    """
    wanted = as_pattern(pattern)
    require_place(path)
    if not isinstance(args, tuple):
        raise ConfigError(f"args is a {type(args).__name__}", remedy="give a tuple of inputs, such as (x,)")
    if compare is None:
        compare = importlib.util.find_spec("onnxruntime") is not None and not _has_bfloat16(model, args, kwargs)
    elif compare and _has_bfloat16(model, args, kwargs):
        raise ConfigError("ONNX Runtime does not take bfloat16", remedy="export in float32, or pass compare=False")
    expected = _sparse_weights(model, wanted)
    detach_computed(model)
    frozen = copy.deepcopy(model).eval()
    finalize(frozen)
    bake_parametrizations(frozen)
    remove_norms(frozen)
    by_name = dict(kwargs or {})
    names = {"input_names": input_names, "output_names": output_names}
    program = _trace(frozen, args, kwargs=by_name, dynamic_shapes=dynamic_shapes, **names)
    target = Path(path)
    with onnx_output(target) as draft:
        layers = _save(program, draft, wanted)
        if any(layer.groups == 1.0 and not layer.eligible for layer in layers):
            # masks that the model applies itself: the exporter leaves products of more than 8192 elements to run time
            _fold(program)
            layers = _save(program, draft, wanted)
        unused = _compare_layers(frozen, expected, layers)
        error = _compare_outputs(frozen, args, by_name, draft, tolerance) if compare else None
    return ExportReport(target, layers, unused, error)


def _sparse_weights(model: nn.Module, pattern: NM) -> list[LayerCheck]:
    """The weights that follow the pattern in torch, and must in the file."""
    checks = [check for check in check_module(model, pattern) if check.groups == 1.0]
    for check in checks:
        if check.reason:  # made when the model runs, by something that `finalize` cannot bake in
            raise SparsityLost(check.reason, layer=check.name)
    return checks


def _save(program: torch.onnx.ONNXProgram, draft: Path, pattern: NM) -> tuple[LayerCheck, ...]:
    """Write the program, and check what was written."""
    for file in draft.parent.iterdir():
        file.unlink()
    initializers = program.model.graph.initializers.values()
    stored = sum(entry.const_value.nbytes for entry in initializers if entry.const_value is not None)
    program.save(draft, external_data=stored > _ONE_FILE_BYTES)
    return check_onnx(draft, pattern)


def _fold(program: torch.onnx.ONNXProgram) -> None:
    """Compute what depends on constants alone, however large."""
    from onnxscript import optimizer  # noqa: PLC0415

    optimizer.optimize_ir(program.model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)


def _trace(model: nn.Module, args: tuple[Any, ...], **options: Any) -> torch.onnx.ONNXProgram:
    """Run PyTorch's exporter; its errors run over pages, of which the first line is kept."""
    try:
        with torch.no_grad(), _without_exporter_noise():
            program = torch.onnx.export(
                model, args, dynamo=True, optimize=True, opset_version=OPSET, verbose=False, **options
            )
    except OnnxExporterError as error:
        cause = first_line(error.__cause__ or error).rstrip(".")
        raise UnsupportedModel(
            f"PyTorch cannot export the model: {cause}",
            remedy="see the exception above for its whole message",
        ) from error
    assert program is not None
    return program


@contextmanager
def _without_exporter_noise() -> Iterator[None]:
    """Keep back two messages of PyTorch's exporter about itself, which users can do nothing about; all others pass."""
    logger = logging.getLogger(_REGISTRATION_LOGGER)
    logger.addFilter(_is_not_about_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.removeFilter(_is_not_about_torchvision)


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed")


def _compare_layers(model: nn.Module, expected: Sequence[LayerCheck], layers: Sequence[LayerCheck]) -> tuple[str, ...]:
    """Find each sparse weight of the torch model in the file; return the names of those that are not there.

    A weight keeps its name, or that of another layer that shares it, unless the exporter transposed it; then
    the node says which module it came from. A weight that is found neither way is unused, unless the file has
    a dense weight of its size that no layer of the model accounts for.
    """
    owners = {choice.full_name: choice.identity for choice in prunable(model)}

    def uses(layer: LayerCheck, name: str) -> bool:
        if layer.name in owners:
            return owners[layer.name] == owners[name]
        return layer.scope == name.rpartition(".")[0]

    unused = []
    unclaimed = [layer for layer in layers if not any(uses(layer, name) for name in owners)]
    for check in expected:
        found = [layer for layer in layers if uses(layer, check.name)]
        if not found:
            unused.append(check.name)
            found = [layer for layer in unclaimed if np.prod(layer.shape) == np.prod(check.shape)]
        for layer in found:
            if not layer.eligible:
                raise SparsityLost(
                    f"sparse in torch, but in the file, as '{layer.name}': {layer.reason}", layer=check.name
                )
    return tuple(unused)


def _has_bfloat16(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> bool:
    tensors = (*model.state_dict().values(), *_pytree.tree_leaves((args, dict(kwargs or {}))))
    return any(torch.is_tensor(tensor) and tensor.dtype == torch.bfloat16 for tensor in tensors)


def _way_to_numbers(model: nn.Module) -> str:
    """What to do about outputs that are not finite."""
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            return f"mend the model: its parameter '{name}' holds some"
    return "give other example inputs, or pass compare=False"


def _compare_outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path, tolerance: float
) -> float:
    """The largest relative difference between torch and ONNX Runtime on the example inputs."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "cannot compare without ONNX Runtime", remedy="install onnxruntime, or pass compare=False"
        ) from error
    with torch.no_grad():
        expected = [leaf for leaf in _pytree.tree_leaves(model(*args, **kwargs)) if torch.is_tensor(leaf)]
    given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        feeds = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}
        outputs = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ExportMismatch(
            f"ONNX Runtime cannot run the file: {first_line(error)}", remedy="pass compare=False if another runtime can"
        ) from error
    worst = 0.0
    for index, (output, tensor) in enumerate(zip(outputs, expected, strict=True)):
        reference = tensor.detach().cpu().double().numpy()
        if not np.isfinite(reference).all():
            raise ExportMismatch(
                f"output {index} of the torch model holds NaN or infinity, and cannot be compared",
                remedy=_way_to_numbers(model),
            )
        scale = max(float(np.abs(reference).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(output.astype(np.float64) - reference).max(initial=0.0)) / scale
        if not difference <= tolerance:  # also if it is NaN
            raise ExportMismatch(f"output {index} differs from torch by {difference:.1e} of its largest value")
        worst = max(worst, difference)
    return worst
