"""SparseGPT on matrices, against its definition written with inverses, and least squares against a solver."""

from __future__ import annotations

import pytest
import torch

from tamis.errors import SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity import nm_mask
from tamis.sparsity.compensation import compensate, refit

PATTERNS = [NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2)]


def correlated(groups: int, samples: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, samples, columns // 2, generator=generator, dtype=torch.float64)
    mixed = few @ torch.randn(groups, columns // 2, columns, generator=generator, dtype=torch.float64)
    return mixed + 0.3 * torch.randn(groups, samples, columns, generator=generator, dtype=torch.float64)


def by_definition(weight: torch.Tensor, hessian: torch.Tensor, pattern: NM) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove column by column; each removal moves all columns behind as Optimal Brain Surgeon says."""
    work, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    inverses = [torch.linalg.inv(hessian[start:, start:]) for start in range(columns)]
    for column in range(columns):
        if column % pattern.m == 0:
            places = range(column, column + pattern.m)
            losses = torch.stack([work[:, place].square() / inverses[place][0, 0] for place in places], 1)
            mask[:, column : column + pattern.m] = nm_mask(losses, pattern, 1)
        inverse = inverses[column]
        removed = torch.where(mask[:, column], 0.0, work[:, column])
        work[:, column:] -= removed[:, None] * inverse[0] / inverse[0, 0]
        work[:, column] *= mask[:, column]
    return work, mask


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("block", [1, 8, 128])
def test_agrees_with_the_definition(pattern: NM, block: int) -> None:
    inputs = correlated(2, 64, 24)
    hessian = inputs.mT @ inputs
    weight = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, mask = compensate(weight, hessian, pattern, damping=0.05, block=block)
    for group in range(2):
        damped = hessian[group] + 0.05 * hessian[group].diagonal().mean() * torch.eye(24, dtype=torch.float64)
        expected, expected_mask = by_definition(weight[group], damped, pattern)
        assert torch.equal(mask[group], expected_mask)
        torch.testing.assert_close(found[group], expected)
    assert bool((found[~mask] == 0).all()) and is_nm(mask.numpy(), pattern, 2)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_refit_is_least_squares(pattern: NM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamis.sparsity.compensation._REFIT_ELEMENTS", 300)  # a few rows at a time
    inputs = correlated(2, 64, 24)
    weight = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = nm_mask(weight.abs(), pattern, 2)
    fitted = refit(weight, mask, inputs.mT @ inputs, damping=0.0)
    assert bool((fitted[~mask] == 0).all())
    for group in range(2):
        for row in range(7):
            kept = mask[group, row]
            target = inputs[group] @ weight[group, row]
            expected = torch.linalg.lstsq(inputs[group][:, kept], target[:, None]).solution[:, 0]
            torch.testing.assert_close(fitted[group, row, kept], expected)


def test_each_step_brings_the_outputs_closer() -> None:
    inputs, held_out = correlated(1, 512, 64).split(256, 1)
    hessian = inputs.mT @ inputs
    weight = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def error(pruned: torch.Tensor) -> float:
        return float((held_out @ (weight - pruned).mT).norm() / (held_out @ weight.mT).norm())

    plain = error(weight * nm_mask(weight.abs(), NM(2, 4), 2))
    compensated, mask = compensate(weight, hessian, NM(2, 4))
    best = refit(weight, mask, hessian)
    assert error(compensated) < plain / 1.5
    assert error(best) < error(compensated)
    assert not torch.equal(compensated[mask], weight[mask])


def test_columns_that_meet_zeros_go_first_and_keep_what_they_keep() -> None:
    inputs = correlated(1, 64, 16)
    dead = [1, 2, 3, 9]
    inputs[..., dead] = 0.0
    weight = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, mask = compensate(weight, inputs.mT @ inputs, NM(2, 4))
    assert bool(mask[..., 0].all())  # alone with three dead ones
    assert not bool(mask[..., 9].any())
    survivors = mask[..., dead]
    assert int(survivors.sum()) == 6
    assert torch.equal(found[..., dead][survivors], weight[..., dead][survivors])


def test_inputs_of_zeros_only_leave_magnitude() -> None:
    weight = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    found, mask = compensate(weight, torch.zeros(1, 16, 16), NM(2, 4))
    assert torch.equal(mask, nm_mask(weight.abs(), NM(2, 4), 2))
    assert torch.equal(found, weight * mask)


def test_a_singular_hessian_in_low_precision_gets_more_damping() -> None:
    direction = torch.linspace(1, 2, 64)[None, None]
    weight = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    found, mask = compensate(weight, direction.mT @ direction, NM(2, 4), damping=1e-12)
    assert bool(torch.isfinite(found).all()) and bool((found[~mask] == 0).all())


def test_a_hessian_with_nan_is_refused() -> None:
    with pytest.raises(SparsityError, match="cannot be inverted"):
        compensate(torch.ones(1, 2, 4), torch.full((1, 4, 4), float("nan")), NM(2, 4))
