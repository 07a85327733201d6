"""Sparse training inside Lightning and Hugging Face's Trainer, which are loaded only when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from tamis.errors import MissingLibrary
from tamis.formats import NM
from tamis.sparsity.pruning import Exclude
from tamis.sparsity.schedule import Schedule
from tamis.sparsity.training import SRSTE, SparseTraining


def lightning_callback(
    pattern: str | NM = "2:4",
    *,
    schedule: Schedule | None = None,
    refine: SRSTE | None = None,
    exclude: Exclude = (),
) -> Any:
    """A Lightning `Callback` that prunes the module at the start of `fit` and bakes its zeros in at the end.

    A model sharded by FSDP2 keeps its masks at the end: use `bake_state_dict` on its gathered state dict. The
    callback's state is part of Lightning's checkpoints. Arguments are those of `SparseTraining`.

    Raises:
        MissingLibrary: neither `lightning` nor `pytorch_lightning` is installed.
    """
    base = _base((("lightning.pytorch", "Callback"), ("pytorch_lightning", "Callback")), "lightning")

    class SparsityCallback(base):  # type: ignore[misc, valid-type]
        """Follows the hooks of `lightning.pytorch.Callback`."""

        training: SparseTraining | None = None

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit" and self.training is None:
                self.training = SparseTraining(pl_module, pattern, schedule=schedule, refine=refine, exclude=exclude)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            while self.training is not None and self.training.steps < trainer.global_step:
                self.training.step()  # not with batches whose gradients are only accumulated

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.training is not None:
                _end(self.training)
                self.training = None

        def state_dict(self) -> dict[str, Any]:
            return {} if self.training is None else self.training.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if self.training is not None:
                self.training.load_state_dict(state_dict)

    return SparsityCallback()


def trainer_callback(
    pattern: str | NM = "2:4",
    *,
    schedule: Schedule | None = None,
    refine: SRSTE | None = None,
    exclude: Exclude = (),
) -> Any:
    """A `TrainerCallback` for Hugging Face's Trainer: prunes when the Trainer is made, bakes in at the end.

    A model sharded by FSDP2 keeps its masks at the end: use `bake_state_dict` on its gathered state dict.

    On resuming, the masks come with the model's checkpoint and the step with the Trainer's. Arguments are those
    of `SparseTraining`.

    Raises:
        MissingLibrary: `transformers` is not installed.
    """
    base = _base((("transformers", "TrainerCallback"),), "transformers")

    class SparsityCallback(base):  # type: ignore[misc, valid-type]
        """Follows the events of `transformers.TrainerCallback`."""

        training: SparseTraining | None = None

        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.training = SparseTraining(model, pattern, schedule=schedule, refine=refine, exclude=exclude)

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if self.training is None:  # added to a Trainer that was made already
                self.training = SparseTraining(model, pattern, schedule=schedule, refine=refine, exclude=exclude)
            self.training.steps = state.global_step  # not 0 when resuming

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.training is not None:
                self.training.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.training is not None:
                _end(self.training)
                self.training = None

    return SparsityCallback()


def _end(training: SparseTraining) -> None:
    """Bake the zeros in; where the model is sharded, only see that they are complete."""
    if training.sharded:
        training.require_ended()
    else:
        training.finalize()


def _base(places: tuple[tuple[str, str], ...], package: str) -> type:
    for module, name in places:
        try:
            found: type = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        return found
    raise MissingLibrary(f"this callback needs {package}", remedy=f"run 'pip install {package}'")
