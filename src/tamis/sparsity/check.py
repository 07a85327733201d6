"""Does a model hold the pattern? Layer by layer, from the numbers alone, on the axis that counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from tamis.formats import NM, tightest, violations
from tamis.sparsity.hold import held_mask, originals
from tamis.sparsity.masks import LayerChoice, as_pattern, magnitude_mask, prunable, require_values, shape_misfit

Progress = Callable[[str, int, int, str], None]

PACKED = (torch.float4_e2m1fn_x2,) if hasattr(torch, "float4_e2m1fn_x2") else ()
_SMALL = 0.1  # of the norm; the two smallest of four Gaussian weights hold 0.3
NOT_FINITE = "it holds NaN or infinity"
RUN_TIME = "its zeros come from {} when the model runs, the stored weight is dense; {}"
PRUNED = RUN_TIME.format("torch.nn.utils.prune", "call torch.nn.utils.prune.remove")


@dataclass(frozen=True)
class LayerCheck:
    """What was found about one weight where one layer uses it.

    Attributes:
        name: of the weight: parameter or initializer.
        op: the kind of layer: an ONNX operator or a torch class; empty in a state dict.
        axis: the reduction axis of the weight as the layer sees it.
        shape: the shape of the weight as the layer sees it.
        zeros: fraction of elements that are zero, 0 to 1.
        groups: fraction of aligned groups along the axis that follow the pattern, 0 to 1.
        reason: why sparse kernels cannot use the weight; None if they can.
        node: the ONNX node; empty otherwise.
        scope: the torch module that the node came from, where the exporter wrote it down.
        found: the tightest pattern along the axis, such as 1:4 where 2:4 was asked for; None if there is none.
        first: where the first group is that breaks the pattern, as the index of its first element; None if none does.
        fits: whether the layer could follow the pattern at all, as a depthwise convolution cannot.
    """

    name: str
    op: str
    axis: int
    shape: tuple[int, ...]
    zeros: float
    groups: float
    reason: str | None
    node: str = ""
    scope: str = ""
    found: NM | None = None
    first: tuple[int, ...] | None = None
    fits: bool = True

    @property
    def eligible(self) -> bool:
        """Whether sparse kernels can use the weight."""
        return self.reason is None


def judge(
    weight: NDArray[np.generic], axis: int, pattern: NM, *, misfit: str | None, run_time: str | None, **names: str
) -> LayerCheck:
    """Judge one weight.

    Args:
        weight: as the layer sees it: dequantised, transposed.
        axis: its reduction axis.
        pattern: what is wanted.
        misfit: why the pattern cannot apply to the layer at all.
        run_time: what makes the zeros when the model runs, where the stored weight lacks them.
        names: `name`, `op`, and `node` and `scope` where there are any.
    """
    nonzero = np.asarray(weight != 0)
    zeros = 1.0 - float(np.count_nonzero(nonzero)) / max(nonzero.size, 1)
    found = tightest(nonzero, axis, pattern)
    held, first, reason = 0.0, None, misfit
    if not misfit:
        broken = violations(nonzero, pattern, axis, limit=1)
        held = 1.0 - broken.count / _groups(nonzero, axis, pattern)
        first = broken.first[0] if broken.first else None
        reason = run_time if first is None else _dense(nonzero, axis, pattern, held, first)
    return LayerCheck(
        axis=axis,
        shape=tuple(weight.shape),
        zeros=zeros,
        groups=held,
        reason=reason,
        found=found if isinstance(found, NM) else None,
        first=first,
        fits=not misfit,
        **names,
    )


def check_module(
    model: nn.Module, pattern: str | NM = "2:4", *, progress: Progress | None = None
) -> tuple[LayerCheck, ...]:
    """Check the weights of a torch model as its layers see them: masks held, weight norms and the like computed.

    Zeros that something other than Tamis makes while the model runs (`torch.nn.utils.prune`, parametrisations) are a
    reason against a layer: the default ONNX exporter loses them without a word. A weight shared with a layer that
    reduces over another axis, or over none, as an embedding, counts if it follows the pattern; if not, the layer cannot
    be made to follow it without changing the other.
    `progress` is called with ("check", weights done, weights in all, name of the weight).

    Raises:
        SparsityError: a weight has no values yet.
    """
    wanted = as_pattern(pattern)
    checks = []
    choices = prunable(model, wanted)
    for done, choice in enumerate(choices):
        require_values(choice)
        if progress:
            progress("check", done, len(choices), choice.full_name)
        misfit = shape_misfit(choice, wanted)
        check = judge(
            nonzeros(choice.weight),
            choice.axis,
            wanted,
            misfit=misfit,
            run_time=_run_time(choice),
            name=choice.full_name,
            op=type(choice.module).__name__.removeprefix("Parametrized"),
        )
        if choice.reason and not misfit and not check.eligible:
            check = replace(check, reason=choice.reason, fits=False)
        if check.groups < 1.0 and check.fits and (note := _nearly(choice, wanted)):
            check = replace(check, reason=f"{check.reason}; {note}")
        checks.append(check)
    return tuple(checks)


def nonzeros(weight: torch.Tensor) -> NDArray[np.bool_]:
    """Where a weight is not zero (NaN is not), as NumPy, whatever its type and device."""
    dense = weight.detach().dequantize() if weight.is_quantized else weight.detach()
    if dense.layout != torch.strided:
        dense = dense.to_dense()
    if dense.dtype in PACKED:
        dense = dense.view(torch.uint8)
    elif dense.dtype.is_floating_point and dense.element_size() == 1:
        dense = dense.float()  # torch compares no 8-bit floats
    return np.asarray((dense != 0).cpu().numpy())


def broken_by_little(share: float) -> str | None:
    """Say so if what would have to become zero is a smaller share of the weight's norm than chance makes it."""
    if not share <= _SMALL:
        return None
    return f"what breaks it is {share:.2g} of the weight's norm, as in an average that was begun before pruning"


def _fraction(nonzero: NDArray[np.bool_], axis: int, pattern: NM) -> float:
    """The fraction of aligned groups that follow the pattern."""
    return 1.0 - violations(nonzero, pattern, axis, limit=0).count / _groups(nonzero, axis, pattern)


def _groups(nonzero: NDArray[np.bool_], axis: int, pattern: NM) -> int:
    """How many groups there are, at least one."""
    size = int(nonzero.shape[axis])
    return max(nonzero.size // max(size, 1) * -(-size // pattern.m), 1)


def _dense(nonzero: NDArray[np.bool_], axis: int, pattern: NM, held: float, first: tuple[int, ...]) -> str:
    """Say how far from the pattern, and whether it lies along another axis by mistake."""
    for other in range(nonzero.ndim):
        fits = other != axis and nonzero.shape[other] % pattern.m == 0
        if fits and _fraction(nonzero, other, pattern) == 1.0:
            return f"{pattern} along axis {other}, but the layer reduces over axis {axis}"
    flat = nonzero.reshape(nonzero.shape[0], -1)
    if nonzero.ndim > 2 and flat.shape[1] % pattern.m == 0 and _fraction(flat, 1, pattern) == 1.0:
        return f"{pattern} along the flattened kernel, but the layer reduces over axis {axis}"
    # rounded down: one group of a million is enough to break the pattern
    share = f"{int(held * 1000) / 10:.1f}%"
    where = f"; the first that is not begins at {list(first)}" if held else ""
    return f"{share} of the groups along axis {axis} are {pattern}{where}"


def _nearly(choice: LayerChoice, pattern: NM) -> str | None:
    """Say so if what breaks the pattern is small, or no number."""
    weight = choice.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        return NOT_FINITE
    lost = torch.where(magnitude_mask(weight, pattern, choice.axis), 0.0, weight).norm()
    share = float(lost / weight.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return broken_by_little(share)


def _run_time(choice: LayerChoice) -> str | None:
    """What makes the zeros of a weight at run time, other than a mask that `finalize` bakes in."""
    module, parameter = choice.module, choice.parameter
    if hasattr(module, f"{parameter}_orig") and hasattr(module, f"{parameter}_mask"):
        return PRUNED
    if not parametrize.is_parametrized(module, parameter) or held_mask(module, parameter) is not None:
        return None
    weight = choice.weight
    alike = [original for original in originals(choice) if original.shape == weight.shape]
    # norms and scales leave the zeros of what they are computed from
    if any(int(torch.count_nonzero(original)) <= int(torch.count_nonzero(weight)) for original in alike):
        return None
    return RUN_TIME.format("a parametrisation", "call remove_parametrizations")
