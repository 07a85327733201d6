"""Search an order of columns under which N:M keeps more: greedy swaps of channels, with bounded escapes.

Pool & Yu, "Channel Permutations for N:M Sparsity", 2021: swap two columns of different stripes (aligned groups of
M columns) as long as that gains; where nothing gains any more, disturb the order and try again, a bounded number
of times.
"""

from __future__ import annotations

import torch

from tamis.formats import NM

_DISTURBED = 4  # swaps at random in one escape
_LEAST_GAIN = 1e-9  # of the whole sum; less is rounding


def search_order(
    scores: torch.Tensor, classes: torch.Tensor, pattern: NM, *, escapes: int = 8, seed: int = 0
) -> torch.Tensor:
    """The order of columns that was found to keep most.

    Args:
        scores: how much each element matters, not negative: (rows, columns), columns a multiple of `pattern.m`.
        classes: (columns,); a column moves only to places of columns of its own class.
        pattern: the N:M pattern along the columns.
        escapes: how often to go on from a disturbed order.
        seed: of the disturbances.

    Returns:
        (columns,): the column that each place takes. Keeps at least as much as the order given.
    """
    order = torch.arange(scores.shape[1], device=scores.device)
    state = _State(scores.double(), classes, pattern, order)
    state.climb()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(escapes):
        trial = state.copy()
        trial.disturb(generator)
        trial.climb()
        if trial.total() > state.total() * (1 + _LEAST_GAIN):
            state = trial
    return state.order


class _State:
    """An order, and what every replacement of one column by another would keep under it."""

    def __init__(self, scores: torch.Tensor, classes: torch.Tensor, pattern: NM, order: torch.Tensor) -> None:
        self.scores, self.classes, self.pattern, self.order = scores, classes, pattern, order
        columns = scores.shape[1]
        self.stripe = torch.arange(columns, device=scores.device) // pattern.m
        self.barred = self.stripe[:, None] == self.stripe[None, :]
        self.barred |= classes[:, None] != classes[None, :]
        self.kept = scores.new_zeros(columns // pattern.m)
        self.replaced = scores.new_zeros(columns, columns)  # [i, j]: kept by the stripe of i if j stood for i
        self._measure(torch.arange(columns // pattern.m, device=scores.device))

    def copy(self) -> _State:
        other = object.__new__(_State)
        other.__dict__ = {**self.__dict__}
        for name in ("scores", "order", "kept", "replaced"):
            setattr(other, name, getattr(self, name).clone())
        return other

    def total(self) -> float:
        """What all stripes keep."""
        return float(self.kept.sum())

    def climb(self) -> None:
        """Swap until no swap gains."""
        while True:
            before = self.kept[self.stripe]
            gains = self.replaced + self.replaced.T - before[:, None] - before[None, :]
            best, partner = gains.masked_fill_(self.barred, -torch.inf).max(1)
            swaps, used = [], set[int]()
            partners, values = partner.tolist(), best.tolist()
            least = _LEAST_GAIN * max(self.total(), 1e-300)
            # the best first; swaps of different stripes do not disturb each other
            for first in sorted(range(len(values)), key=lambda column: -values[column]):
                if values[first] <= least:
                    break
                stripes = {first // self.pattern.m, partners[first] // self.pattern.m}
                if not stripes & used:
                    used |= stripes
                    swaps.append((first, partners[first]))
            if not swaps:
                return
            self._swap(swaps)

    def disturb(self, generator: torch.Generator) -> None:
        """Swap a few pairs at random."""
        used, swaps = set[int](), []
        for first in torch.randperm(len(self.order), generator=generator)[:_DISTURBED].tolist():
            others = (~self.barred[first]).nonzero()[:, 0].tolist()
            if not others:
                continue
            second = others[int(torch.randint(len(others), (1,), generator=generator))]
            stripes = {first // self.pattern.m, second // self.pattern.m}
            if not stripes & used:
                used |= stripes
                swaps.append((first, second))
        if swaps:
            self._swap(swaps)

    def _swap(self, swaps: list[tuple[int, int]]) -> None:
        """Swap pairs of columns, no two pairs with a stripe in common."""
        first, second = torch.tensor(swaps, device=self.order.device).T
        here, there = torch.cat([first, second]), torch.cat([second, first])
        self.order[here] = self.order[there]
        self.scores[:, here] = self.scores[:, there]
        self.replaced[:, here] = self.replaced[:, there]
        self._measure(self.stripe[here])

    def _measure(self, stripes: torch.Tensor) -> None:
        """Measure anew what is kept in some stripes, and would be with one of their columns replaced."""
        n, m = self.pattern.n, self.pattern.m
        members = torch.unflatten(self.scores, 1, (-1, m))[:, stripes]
        self.kept[stripes] = members.topk(n, dim=2).values.sum((0, 2))
        for index in range(m):
            rest = torch.cat([members[..., :index], members[..., index + 1 :]], 2).topk(n, dim=2).values
            least = rest[..., -1]  # a newcomer adds what it has above this one: (x - l + |x - l|) / 2
            above = torch.cdist(least.T[None], self.scores.T[None], p=1.0)[0]
            above += self.scores.sum(0)[None, :] - least.sum(0)[:, None]
            self.replaced[stripes * m + index] = rest.sum((0, 2))[:, None] + above / 2
