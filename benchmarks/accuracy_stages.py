"""The stages of ``bench_accuracy.py``: what is done to a trained network, one after another, and how good it is then.

A stage takes a checkpoint that an earlier one left, and leaves its own. Nothing here looks at the test images except
to judge, and the layers' errors.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from accuracy_data import Images
from accuracy_training import Recipe, Run, evaluate, train
from tamis.sparsity import (
    Removal,
    Schedule,
    SparseTraining,
    check_module,
    finalize,
    load_channels,
    permute_channels,
    prunable,
    prune,
    prune_progressively,
    save_channels,
)

CALIBRATION_BATCH = 256
UNSEEN = 512  # test images on which layers are compared


@dataclass(frozen=True)
class Network:
    """A network and how it is treated.

    Attributes:
        name: for rows.
        build: makes it, untrained.
        recipe: of all its trainings.
        macs: fraction of the multiplications that channel pruning leaves.
        step: fraction of the channels that each of its steps removes.
        removal: which channels.
        between: epochs of training after each step but the last, which trains as long as all others.
        calibration: training images that SparseGPT sees.
        escapes: of the permutation's search.
    """

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    macs: float = 0.5
    step: float = 0.05
    removal: Removal = field(default_factory=Removal)
    between: int = 2
    calibration: int = 2048
    escapes: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a stage found; None where it has no such thing.

    Attributes:
        epochs: of training, all stages before it included.
        accuracy: top-1 on the test images, percent.
        loss: cross-entropy on the test images.
        macs: multiplications left, as a fraction of the dense network's (zeros count as the others).
        zeros: fraction of zeros in the weights that follow the pattern.
        layers: relative output error by magnitude and by SparseGPT, by name of layer.
        note: what else there is to say.
    """

    epochs: int = 0
    accuracy: float | None = None
    loss: float | None = None
    macs: float = 1.0
    zeros: float = 0.0
    layers: dict[str, tuple[float, float]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Context:
    """What a stage works on: a network, a seed, the images, and the folder of this network's and seed's checkpoints.

    ``done`` holds the outcomes of earlier stages by name.
    """

    network: Network
    seed: int
    run: Run
    folder: Path
    done: dict[str, Outcome]

    def built(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.network.build().to(self.run.device)

    def loaded(self, stage: str) -> nn.Module:
        """The network that a stage left."""
        model = self.built()
        load_channels(model, checkpoint(self.folder, stage))
        return model.eval()

    def calibration(self) -> list[torch.Tensor]:
        """Training images as they are, without augmentation; other ones for each seed."""
        generator = torch.Generator().manual_seed(self.seed)
        count = min(self.network.calibration, len(self.run.train))
        chosen = torch.randperm(len(self.run.train), generator=generator)[:count].to(self.run.device)
        images = Images(self.run.train.pixels[chosen], self.run.train.labels[chosen])
        return [pixels for pixels, _ in images.batches(CALIBRATION_BATCH)]


@dataclass(frozen=True)
class Stage:
    """A step of the comparison.

    Attributes:
        name: for rows and files.
        work: does it, and leaves a checkpoint under its name where a later stage needs one.
        needs: the stage that it begins with, or measures itself by.
        extra: whether it waits until all networks and seeds have gone through the stages that are not.
    """

    name: str
    work: Callable[[Context], Outcome]
    needs: str | None = None
    extra: bool = False


def checkpoint(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.safetensors"


def trained(context: Context) -> Outcome:
    """Dense training from scratch."""
    model, recipe = context.built(), context.network.recipe
    train(model, context.run, recipe, seed=context.seed, epochs=recipe.epochs, rate=recipe.rate)
    save_channels(model, checkpoint(context.folder, "dense"))
    return judged(context, model, Outcome(epochs=recipe.epochs))


def pruned(context: Context, method: str, stage: str) -> Outcome:
    """2:4 without any training."""
    model = context.loaded("dense")
    prune(model, "2:4", method=method, calibration=context.calibration() if method == "sparsegpt" else None)
    finalize(model)
    save_channels(model, checkpoint(context.folder, stage))
    return judged(context, model, context.done["dense"], pattern="2:4")


def permuted(context: Context) -> Outcome:
    """Channels in a better order, then 2:4 by magnitude, without any training."""
    model = context.loaded("dense")
    report = permute_channels(model, context.calibration()[0][:4], "2:4", escapes=context.network.escapes)
    prune(model, "2:4")
    finalize(model)
    note = f"magnitude kept: {report.after / report.before - 1:+.2%}"
    return judged(context, model, context.done["dense"], pattern="2:4", note=note)


def tuned(context: Context, start: str, pattern: str | None) -> Outcome:
    """Trained on from a stage with masks held, or for the sake of comparison without any.

    1:4 comes gradually, in the first third of the steps. 2:4 is there from the first.
    """
    model, recipe, run = context.loaded(start), context.network.recipe, context.run
    epochs = recipe.tuning
    sparse = None
    if pattern is not None:
        steps = epochs * (len(run.train) // min(recipe.batch, len(run.train)))
        gradual = Schedule("cubic", end=max(steps // 3, 1), every=max(steps // 60, 1))
        sparse = SparseTraining(model, pattern, schedule=gradual if pattern == "1:4" else None)
    train(model, run, recipe, seed=1000 + context.seed, epochs=epochs, rate=recipe.tuning_rate, sparse=sparse)
    if sparse is not None:
        sparse.finalize()
    return judged(context, model, context.done[start], epochs=epochs, pattern=pattern)


def narrowed(context: Context) -> Outcome:
    """Channels removed a few at a time, with training between and after."""
    network, run, recipe = context.network, context.run, context.network.recipe
    dense, epochs, left = context.loaded("dense"), 0, 1.0
    smaller: nn.Module = dense
    example = (next(run.test.first(2).batches(2))[0],)
    for step in prune_progressively(dense, example, macs=network.macs, step=network.step, removal=network.removal):
        smaller, left = step.model, step.macs_ratio
        more = recipe.tuning if left <= network.macs else network.between
        run.say(f"    step {step.number}: {left:.1%} of the multiplications left, {more} epochs")
        train(smaller, run, recipe, seed=2000 + context.seed + step.number, epochs=more, rate=recipe.tuning_rate)
        epochs += more
    save_channels(smaller, checkpoint(context.folder, "channels"))
    return judged(context, smaller, context.done["dense"], epochs=epochs, macs=left)


def trained_longer(context: Context) -> Outcome:
    """The dense network trained on for as many epochs as the one that lost channels and then half of its weights."""
    recipe, dense = context.network.recipe, context.done["dense"]
    epochs = context.done["channels-2:4"].epochs - dense.epochs
    model = context.loaded("dense")
    train(model, context.run, recipe, seed=3000 + context.seed, epochs=epochs, rate=recipe.tuning_rate)
    return judged(context, model, dense, epochs=epochs)


def layers_compared(context: Context) -> Outcome:
    """Relative output errors of each layer pruned alone, by magnitude and by SparseGPT, on images that neither saw.

    The error of a layer is the norm of the change of its outputs over that of its outputs, biases aside.
    """
    dense = context.loaded("dense")
    calibration = context.calibration()
    weights: dict[str, tuple[torch.Tensor, ...]] = {}
    for layer in prunable(dense):
        if layer.reason is None:
            found = [layer.weight.detach()]
            for method in ("magnitude", "sparsegpt"):
                model = copy.deepcopy(dense)
                prune(model, plan={layer.full_name: "2:4"}, method=method, calibration=calibration)
                found.append(model.get_submodule(layer.name).weight.detach() - found[0])
            weights[layer.name] = tuple(found)
    norms = _output_norms(dense, weights, context.run.test.first(UNSEEN))
    errors = {name: (one / whole, other / whole) for name, (whole, one, other) in norms.items()}
    ratios = [one / other for one, other in errors.values()]
    worst = min(errors, key=lambda name: errors[name][0] / errors[name][1])
    found = f"median {statistics.median(ratios):.2f}, least {min(ratios):.2f} ({worst})"
    note = f"magnitude's error over SparseGPT's: {found}"
    return Outcome(epochs=context.done["dense"].epochs, layers=errors, note=note)


@torch.no_grad()
def _output_norms(
    model: nn.Module, weights: dict[str, tuple[torch.Tensor, ...]], images: Images
) -> dict[str, list[float]]:
    """By name of layer, the norms of what each of some weights makes of the layer's inputs in ``model``."""
    sums: dict[str, torch.Tensor] = {}

    def note(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        squares = [_product(module, inputs[0], weight).double().square().sum() for weight in weights[name]]
        sums[name] = sums.get(name, 0) + torch.stack(squares)

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in weights]
    for pixels, _ in images.batches(CALIBRATION_BATCH):
        model(pixels)
    for handle in handles:
        handle.remove()
    return {name: total.sqrt().tolist() for name, total in sums.items()}


def _product(module: nn.Module, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a layer computes with another weight and no bias."""
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(inputs, weight, None)
    return functional.linear(inputs, weight)


def judged(
    context: Context,
    model: nn.Module,
    base: Outcome,
    *,
    epochs: int = 0,
    macs: float | None = None,
    pattern: str | None = None,
    note: str = "",
) -> Outcome:
    """The outcome of a stage that began with that of ``base``; zeros are counted, not believed."""
    zeros = 0.0
    if pattern is not None:
        checks = [check for check in check_module(model, pattern) if check.fits]
        for check in checks:
            if not check.eligible:
                raise ArithmeticError(f"{check.name}: {check.reason}")
        sizes = [math.prod(check.shape) for check in checks]
        zeros = sum(check.zeros * size for check, size in zip(checks, sizes, strict=True)) / sum(sizes)
    quality = evaluate(model, context.run.test)
    return Outcome(
        base.epochs + epochs, quality.accuracy, quality.loss, base.macs if macs is None else macs, zeros, None, note
    )


# In the order of what matters most, should the time not suffice.
STAGES = (
    Stage("dense", trained),
    Stage("magnitude", lambda context: pruned(context, "magnitude", "magnitude"), "dense"),
    Stage("sparsegpt", lambda context: pruned(context, "sparsegpt", "sparsegpt"), "dense"),
    Stage("tuned-2:4", lambda context: tuned(context, "magnitude", "2:4"), "magnitude"),
    Stage("dense-longer", lambda context: tuned(context, "dense", None), "dense"),
    Stage("tuned-sparsegpt", lambda context: tuned(context, "sparsegpt", "2:4"), "sparsegpt"),
    Stage("channels", narrowed, "dense"),
    Stage("channels-2:4", lambda context: tuned(context, "channels", "2:4"), "channels"),
    Stage("tuned-1:4", lambda context: tuned(context, "dense", "1:4"), "dense"),
    Stage("permuted", permuted, "dense", extra=True),
    Stage("layers", layers_compared, "dense", extra=True),
    Stage("dense-longest", trained_longer, "channels-2:4", extra=True),
)
