"""Training with masks that grow by a schedule, or that follow the weights (SR-STE).

In a loop of one's own, two lines: `training = SparseTraining(model, ...)` before it, `training.step()` after each
step of the optimiser.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tamis.errors import ConfigError, SparsityError
from tamis.formats import NM
from tamis.sparsity.hold import HeldMask, PruneReport, finalize, held_mask, held_names, is_sharded, originals, placed_as
from tamis.sparsity.masks import LayerChoice, as_pattern, follows, lengthened, nm_mask, prunable, unlike
from tamis.sparsity.pruning import Exclude, prune
from tamis.sparsity.schedule import Schedule

_VERSION = 1


@dataclass(frozen=True)
class SRSTE:
    """Let masked weights learn and come back (Zhou et al., "Learning N:M fine-grained structured sparse neural networks
    from scratch", 2021): gradients pass the mask, and masked weights decay.

    Attributes:
        decay: lambda; `decay * weight` is added to the gradient of masked elements.
        every: steps between choices of new masks.
    """

    decay: float = 2e-4
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.decay < float("inf") or self.every < 1:
            raise ConfigError(f"SR-STE with decay {self.decay}, every {self.every}: use a decay >= 0 and a whole step")


class SparseTraining:
    """The masks of a model while it trains. Make it before the model is wrapped (DDP, FSDP2), averaged or compiled.

    Every process of a distributed training makes its own, and all choose equal masks, because their weights are.
    With FSDP2 each process keeps the whole masks, a byte for each weight, and sees one whole weight at a time when
    they are chosen.

    Args:
        model: changed in place, as by `prune`.
        pattern: `"2:4"`, another N:M, or an `NM`.
        schedule: when the groups are pruned; all at once if not given.
        refine: SR-STE; without, pruned elements stay pruned.
        exclude: as `prune` takes it.

    Raises:
        SparsityError: as `prune`; or no layer can follow the pattern.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str | NM = "2:4",
        *,
        schedule: Schedule | None = None,
        refine: SRSTE | None = None,
        exclude: Exclude = (),
    ) -> None:
        self.pattern = as_pattern(pattern)
        self.schedule = schedule or Schedule()
        self.refine = refine
        self.steps = 0
        self.report = prune(model, self.pattern, exclude=exclude)
        self._model = model
        masked = [(choice, held_mask(choice.module, choice.parameter)) for choice in prunable(model)]
        self._layers = [(choice, held) for choice, held in masked if held is not None]
        for _, held in self._layers:
            held.mask = held.mask.clone()  # files of safetensors refuse tensors that share memory
            held.straight_through = refine is not None
            if self.schedule.share(0) < 1.0:
                held.mask.fill_(True)
        self._update(self.schedule.share(0))
        if refine and refine.decay:
            hook = register_optimizer_step_pre_hook(partial(_before_step, weakref.ref(self)))
            self._unhook = weakref.finalize(self, hook.remove)

    def __repr__(self) -> str:
        share = f"{len(self._layers)} layers, {self.zeros:.1%} of their weights masked"
        return f"<SparseTraining to {self.pattern}: step {self.steps}, {share}>"

    @property
    def zeros(self) -> float:
        """The fraction of elements that are masked now, over all layers that follow the pattern."""
        masked = sum(held.mask.numel() - int(held.mask.sum()) for _, held in self._layers)
        return masked / sum(held.mask.numel() for _, held in self._layers)

    def step(self) -> None:
        """Count a step of the optimiser; change the masks where the schedule or SR-STE says so."""
        before, self.steps = self.schedule.share(self.steps), self.steps + 1
        share = self.schedule.share(self.steps)
        refined = self.refine is not None and share > 0.0 and self.steps % self.refine.every == 0
        if share != before or refined:
            self._update(share)

    @property
    def sharded(self) -> bool:
        """Whether the weights are distributed (FSDP2), so that `finalize` is not possible in place."""
        return any(is_sharded(originals(choice)[0]) for choice, _ in self._layers)

    def require_ended(self) -> None:
        """Raise `SparsityError` if the schedule has not pruned all groups yet."""
        share = self.schedule.share(self.steps)
        if share < 1.0:
            raise SparsityError(
                f"step {self.steps} of the schedule: {share:.0%} of the groups are pruned",
                remedy=f"train until step {max(self.schedule.begin, self.schedule.end)}",
            )

    def finalize(self, model: nn.Module | None = None) -> PruneReport:
        """Bake the zeros in, and end this training's work.

        Args:
            model: an average or a copy of the trained model to finalize in its place; the trained one if None.

        Raises:
            SparsityError: the schedule has not ended; a zero is missing; or the given model has no or other masks,
                as an average that was begun before pruning has.
        """
        self.require_ended()
        target = self._model if model is None else model
        if target is not self._model:
            self._require_equal_masks(target)
        for choice, held in self._layers:
            if not follows(held.mask, self.pattern, choice.axis):
                raise SparsityError(
                    f"its mask is not {self.pattern} yet: the model was loaded from an earlier step",
                    layer=choice.full_name,
                    remedy="load a checkpoint from the end of the schedule or later",
                )
        report = finalize(target)
        if target is self._model and self.refine and self.refine.decay:
            self._unhook()
        return report

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's state dict, which holds the masks."""
        return {
            "version": _VERSION,
            "steps": self.steps,
            "pattern": str(self.pattern),
            "schedule": self.schedule.data(),
            "refine": None if self.refine is None else asdict(self.refine),
            "layers": {choice.full_name: list(held.mask.shape) for choice, held in self._layers},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the model's state dict as well.

        Raises:
            SparsityError: the checkpoint is of another model, pattern or schedule.
        """
        if not isinstance(state.get("layers"), Mapping) or state.get("version") != _VERSION:
            raise SparsityError("not a checkpoint of SparseTraining", remedy="give what its state_dict returned")
        mine = self.state_dict()
        for key in ("layers", "pattern", "schedule", "refine"):
            if state.get(key) != mine[key]:
                raise SparsityError(
                    f"the checkpoint is of another {'model' if key == 'layers' else key}: "
                    + _difference(state.get(key), mine[key]),
                    remedy="make SparseTraining as it was made when the checkpoint was written",
                )
        self.steps = int(state["steps"])

    def _require_equal_masks(self, model: nn.Module) -> None:
        others = {choice.full_name: held_mask(choice.module, choice.parameter) for choice in prunable(model)}
        prefix = "module." if all(name.startswith("module.") for name in others) else ""  # AveragedModel
        for choice, held in self._layers:
            name = prefix + choice.full_name
            other = others.get(name)
            if other is None or not torch.equal(other.mask.to(held.mask.device), held.mask):
                what = "has no mask" if other is None else "has another mask"
                raise SparsityError(
                    f"the weight {what} in the given model: it was averaged or copied before it was pruned",
                    layer=name,
                    remedy="begin the average after SparseTraining was made, and keep its masks equal to the model's",
                )

    @torch.no_grad()
    def _update(self, share: float) -> None:
        shared: dict[int, list[tuple[LayerChoice, HeldMask]]] = defaultdict(list)
        for choice, held in self._layers:
            shared[id(originals(choice)[0])].append((choice, held))
        for users in shared.values():
            choice, first = users[0]
            weight = _unmasked(choice)
            if not bool(torch.isfinite(weight).all()) and self.refine is not None:
                raise SparsityError("the weight became NaN or infinite", layer=choice.full_name)
            mask = grown_mask(weight, first.mask, self.pattern, choice.axis, share, keep=self.refine is None)
            for _, held in users:
                held.mask.copy_(mask)  # in place: compiled models and wrappers know this tensor

    @torch.no_grad()
    def _decay(self, optimiser: torch.optim.Optimizer) -> None:
        """Add the decay of SR-STE to the gradients, once for each step, after a loss scaler took its scale out."""
        assert self.refine is not None
        scale = getattr(optimiser, "grad_scale", None)  # a fused optimiser takes it out itself
        factor = self.refine.decay if scale is None else self.refine.decay * scale
        known = {id(entry) for group in optimiser.param_groups for entry in group["params"]}
        done = set[int]()
        for choice, held in self._layers:
            (weight, *others) = originals(choice)
            if others or id(weight) not in known or id(weight) in done or weight.grad is None:
                continue
            done.add(id(weight))
            weight.grad.add_(torch.where(placed_as(held.mask, weight), 0.0, weight) * factor)


def _before_step(
    training: weakref.ref[SparseTraining],
    optimiser: torch.optim.Optimizer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Add the decay to the gradients, also where a closure computes them in the midst of the step."""
    current = training()
    if current is None:
        return None
    closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
    if closure is None:
        current._decay(optimiser)
        return None

    def then_decay() -> Any:
        result = closure()
        current._decay(optimiser)
        return result

    return args[:1], {**kwargs, "closure": then_decay}


def grown_mask(
    weight: torch.Tensor, mask: torch.Tensor, pattern: NM, axis: int, share: float, *, keep: bool
) -> torch.Tensor:
    """The mask under which a share of the groups follow the pattern: those that lose least by it.

    Args:
        weight: dense values.
        mask: what holds now.
        pattern: of the groups.
        axis: along which groups lie.
        share: of the groups, 0 to 1.
        keep: groups that are masked already stay as they are and count first.
    """
    target = nm_mask(weight.abs(), pattern, axis)
    filled = ((target, False), (mask, True), (weight.float(), 0.0))
    groups, held, values = (_grouped(each, axis, pattern.m, filler) for each, filler in filled)
    done = ~held.all(-1) if keep else torch.zeros(groups.shape[:-1], dtype=torch.bool, device=weight.device)
    count = round(share * done.numel())
    lost = torch.where(groups, 0.0, values).square().sum(-1).masked_fill(done, -1.0).flatten()
    chosen = torch.zeros(done.numel(), dtype=torch.bool, device=weight.device)
    chosen[torch.argsort(lost, stable=True)[:count]] = True
    pruned = chosen.view_as(done) | done
    result = torch.where(pruned.unsqueeze(-1), torch.where(done.unsqueeze(-1), held, groups), True)
    return result.flatten(-2)[..., : weight.shape[axis]].movedim(-1, axis)


def bake_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict that `finalize` would have left, from one taken while masks were held.

    For models that cannot be finalized in place (FSDP2: gather with `full_state_dict=True` first) and for
    checkpoints that were written in the middle of training.

    Raises:
        SparsityError: a masked weight is computed by other parametrisations too, or its mask has another shape.
    """
    baked = {}
    masks = set[str]()
    for key, tensor in state.items():
        names = held_names(key)
        if names is None or names[1] not in state:
            baked[key] = tensor
        else:
            mask = state[names[1]]
            if misfit := unlike(mask, tensor):
                raise SparsityError(
                    misfit, layer=names[0], remedy="the two are not of one model: save the state dict again"
                )
            masks.add(names[1])
            baked[names[0]] = torch.where(placed_as(mask, tensor) != 0, tensor, 0.0)
    for key in baked.keys() & masks:
        del baked[key]
    for key in baked:
        if ".parametrizations." in f".{key}":
            raise SparsityError("another parametrisation computes the weight", layer=key, remedy="remove it first")
    return baked


def _grouped(tensor: torch.Tensor, axis: int, size: int, filler: float) -> torch.Tensor:
    moved = lengthened(tensor, size, axis, filler).movedim(axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, size)


def _unmasked(choice: LayerChoice) -> torch.Tensor:
    """The whole weight as it would be without its mask."""
    values = originals(choice)
    for entry in choice.module.parametrizations[choice.parameter].children():  # type: ignore[index, union-attr]
        if isinstance(entry, HeldMask):
            break
        values = [entry(*values)]
    weight = values[0].detach()
    return weight.full_tensor() if is_sharded(weight) else weight  # type: ignore[attr-defined]


def _difference(theirs: Any, mine: Any) -> str:
    """The first thing that differs between two settings."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in (*mine, *theirs):
            if theirs.get(key) != mine.get(key):
                return f"{key} is {theirs.get(key)} there, {mine.get(key)} here"
    return f"{theirs} there, {mine} here"
