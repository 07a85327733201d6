"""Prune a matrix and let the surviving weights make up for those that are gone: SparseGPT.

Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023.
"""

from __future__ import annotations

import torch

from tamis.errors import SparsityError
from tamis.formats import NM
from tamis.sparsity.masks import lengthened, nm_mask

_ATTEMPTS = 8
_NO_LOSS = 1e-12
_REFIT_ELEMENTS = 1 << 24  # of the systems solved at a time, 64 MB


def compensate(
    weight: torch.Tensor, hessian: torch.Tensor, pattern: NM, *, damping: float = 0.01, block: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune rows to N:M, column by column, spreading each column's error over the columns behind it.

    A group of `pattern.m` columns chooses its survivors when it is reached, by what the error would be given all
    that was spread so far. Columns that meet nothing but zeros go first and take no part in the spreading.

    Args:
        weight: (groups, rows, columns); the last group of columns may be shorter.
        hessian: (groups, columns, columns), the products of the inputs, as `activations.hessian` sums them.
        pattern: the N:M pattern along the columns.
        damping: added to the diagonal of `hessian`, as a fraction of its mean.
        block: columns between updates of all that lies behind; changes the speed only.

    Returns:
        The pruned and compensated weight, and the mask of its survivors.

    Raises:
        SparsityError: `hessian` is not finite.
    """
    factor = _inverse_factor(hessian, damping)
    # Damping gives columns that meet nothing a loss, which they do not have; among themselves they rank by magnitude.
    losses = torch.where(hessian.diagonal(dim1=1, dim2=2) > 0, 1.0, _NO_LOSS) / factor.diagonal(dim1=1, dim2=2).square()
    work, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[-1]
    width = max(block // pattern.m, 1) * pattern.m
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        here, kept = work[..., start:stop], mask[..., start:stop]
        errors = _prune_block(here, kept, factor[:, start:stop, start:stop], losses[:, start:stop], pattern)
        work[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return work, mask


def refit(dense: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor, *, damping: float = 0.01) -> torch.Tensor:
    """The survivors that come closest to the outputs of `dense`: least squares, row by row, given the mask.

    Costs about rows x survivors^3 / 3 multiplications, survivors being those of one row.

    Args:
        dense: the weight before pruning, (groups, rows, columns).
        mask: its survivors, equally many in each row.
        hessian: as for `compensate`.
        damping: as for `compensate`; draws the solution towards `dense`.
    """
    damped = _damped(hessian, damping)
    survivors = mask.nonzero()[:, -1].reshape(*mask.shape[:2], -1)
    targets = (dense @ damped).gather(2, survivors)
    portion = max(1, _REFIT_ELEMENTS // survivors.shape[-1] ** 2)
    fitted = torch.zeros_like(dense)
    for group, products in enumerate(damped):
        for first in range(0, dense.shape[1], portion):
            rows = slice(first, first + portion)
            columns = survivors[group, rows]
            systems = products[columns[:, :, None], columns[:, None, :]]
            solved = torch.linalg.solve(systems, targets[group, rows])
            fitted[group, rows] = fitted[group, rows].scatter(1, columns, solved)
    return fitted


def _prune_block(
    here: torch.Tensor, kept: torch.Tensor, factor: torch.Tensor, losses: torch.Tensor, pattern: NM
) -> torch.Tensor:
    """Prune the columns of one block in place; their errors, each over its pivot.

    `losses` are those of removing a weight of 1 from each column.
    """
    errors = torch.empty_like(here)
    pivots = factor.diagonal(dim1=1, dim2=2)
    for column in range(here.shape[-1]):
        if column % pattern.m == 0:
            group = slice(column, min(column + pattern.m, here.shape[-1]))
            scores = lengthened(here[..., group].square() * losses[:, None, group], pattern.m, -1, -1.0)
            kept[..., group] = nm_mask(scores, pattern, -1)[..., : group.stop - column]
        before = here[..., column]
        after = torch.where(kept[..., column], before, 0.0)
        error = (before - after) / pivots[:, column, None]
        here[..., column + 1 :] -= error[..., None] * factor[:, None, column, column + 1 :]
        here[..., column] = after
        errors[..., column] = error
    return errors


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian; more damping where rounding asks for it."""
    for attempt in range(_ATTEMPTS):
        lower, failed = torch.linalg.cholesky_ex(_damped(hessian, damping * 10**attempt))
        if not bool(failed.any()):
            upper: torch.Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed.any()):
                return upper
    raise SparsityError(
        "the products of its inputs cannot be inverted", remedy="give more calibration data, or damping"
    )


def _damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    means = hessian.diagonal(dim1=1, dim2=2).mean(1)
    means = torch.where(means > 0, means, 1.0)  # a layer that has seen zeros only: all weights are alike
    damped = hessian.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping * means[:, None])
    return damped
