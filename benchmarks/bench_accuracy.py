"""What pruning costs in accuracy: networks trained, pruned in several ways and tuned on CIFAR-10, with several seeds.

    python benchmarks/bench_accuracy.py --data data/cifar10
    python benchmarks/bench_accuracy.py --model resnet18 --seeds 0 --time-budget 540
    python benchmarks/bench_accuracy.py --resume                       # go on where a run was stopped
    python benchmarks/bench_accuracy.py --smoke --device cpu --output trial.json      # try every stage out, quickly
    python benchmarks/bench_accuracy.py --device cpu --images 4000 --width 16 --epochs 5 --tuning 3 --output trial.json

The folder ``--data`` holds train.npz and test.npz (see ``accuracy_data.read``). Each network and seed goes through the
stages of ``accuracy_stages.py``. Checkpoints, and what each stage found, are kept in the folder ``--work``; after each
stage all that is known is written to ``results/accuracy-GPU.json``. A stage that fails is told, and the others go on;
``--resume`` tries it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import accuracy_models
from accuracy_data import Augmentation, load
from accuracy_rows import KEY, AccuracyRow, LayerRow
from accuracy_stages import STAGES, Context, Network, Outcome, Stage
from accuracy_training import OutOfTime, Recipe, Run
from gpu_state import about_gpu, short_name
from results import command_line, merge, meta
from tamis.errors import ConfigError, TamisError
from tamis.files import replaced_file
from tamis.sparsity import Removal

RESNET18 = Network(
    "resnet18",
    accuracy_models.resnet18,
    Recipe(
        "sgd", batch=512, epochs=30, tuning=8, rate=0.5, tuning_rate=0.1, decay=5e-4, rise=0.2, smoothing=0.1,
        augmentation=Augmentation(cutout=8),
    ),
)  # fmt: skip
# As good as the same network became in trials, at six times the epochs.
RESNET18_LONG = replace(
    RESNET18,
    name="resnet18-long",
    recipe=replace(
        RESNET18.recipe, epochs=180, tuning=30, rate=0.4, rise=0.15, cut=0.5, augmentation=Augmentation(jitter=0.3)
    ),
)
VIT = Network(
    "vit",
    accuracy_models.vit,
    Recipe(
        "adamw", batch=512, epochs=60, tuning=15, rate=1e-3, tuning_rate=3e-4, decay=0.05, rise=0.1, smoothing=0.1,
        mix=0.3, clip=1.0, augmentation=Augmentation(cutout=12, jitter=0.3),
    ),
    # Heads are kept whole, so that all goes from the perceptrons, which are two thirds of the multiplications.
    macs=0.7, step=0.1, removal=Removal(spread="layer"),
)  # fmt: skip
NETWORKS = (RESNET18, RESNET18_LONG, VIT)
SMOKE_IMAGES = 128
STAGE_SECONDS = 10.0  # what a stage without training may take; those with training say it themselves


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    if options.smoke:
        torch.set_num_threads(1)  # layers this small lose more by threads than they gain
    try:
        device = _device(options.device)
        networks = [_scaled(network, options) for network in NETWORKS if network.name in options.model]
        _prepare(options.work, _settings(networks, options), options.resume)
        train, test = load(options.data, device, options.images, SMOKE_IMAGES if options.smoke else None)
    except TamisError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    _say(f"{len(train)} training and {len(test)} test images on {device} after {time.monotonic() - began:.1f} s")
    run = Run(train, test, device, device.type == "cuda" and not options.no_graphs, began + options.time_budget, _say)
    name = short_name(_machine(device).get("gpu", ""))
    path = options.output or Path(__file__).parent / "results" / f"accuracy-{name}.json"
    try:
        for extra in (False, True):
            for seed in options.seeds:
                for network in networks:
                    _all_stages(network, seed, run, options.work, path, extra)
    except OutOfTime as reason:
        _say(f"stopped before the time was over ({reason}); --resume goes on from here")
    _say(f"{time.monotonic() - began:.0f} s; wrote {path.name}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="folder with train.npz and test.npz")
    parser.add_argument("--model", nargs="+", choices=[network.name for network in NETWORKS],
                        default=[RESNET18.name, VIT.name])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--work", type=Path, default=Path("accuracy-work"), help="folder for checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --work, instead of anew")
    parser.add_argument("--time-budget", type=float, default=float("inf"), metavar="SECONDS", help="stop before that")
    parser.add_argument("--no-graphs", action="store_true", help="run the steps without CUDA graphs")
    parser.add_argument("--smoke", action="store_true", help="every stage on few images and narrow networks")
    trial = parser.add_argument_group("trials on less than all")
    trial.add_argument("--images", type=int, help="training images")
    trial.add_argument("--width", type=int, help="channels of the ResNet's first stage, of the transformer's tokens")
    trial.add_argument("--epochs", type=int, help="of the dense training")
    trial.add_argument("--tuning", type=int, help="epochs of the trainings after that")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.images, options.epochs, options.tuning = options.images or SMOKE_IMAGES, 1, 1
    for name in ("images", "width", "epochs", "tuning", "time_budget"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    smaller = any(getattr(options, name) is not None for name in ("images", "width", "epochs", "tuning"))
    if options.output is None and (smaller or options.device == "cpu"):
        parser.error("trials do not belong to the results: give --output")
    return options


def _device(kind: str) -> torch.device:
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that PyTorch can use", remedy="give --device cpu for a trial")
    torch.backends.cudnn.benchmark = kind == "cuda"
    return torch.device(kind)


def _machine(device: torch.device) -> dict[str, str]:
    """The GPU and its driver, where there is one, for the results."""
    if device.type == "cpu":
        return {}
    return about_gpu(torch.cuda.get_device_name())


def _scaled(network: Network, options: argparse.Namespace) -> Network:
    """A network as the options want it: in earnest, or smaller and shorter for a trial."""
    changes: dict[str, Any] = {}
    if options.width is not None:
        changes["build"] = partial(network.build, width=options.width)
    if options.smoke:
        small = {"width": 16, "depth": 2} if network.name == "vit" else {"width": 8}
        changes["build"] = partial(network.build, **small)
        changes |= {"calibration": 32, "between": 1, "step": 0.3, "removal": replace(network.removal, multiple=4)}
    recipe = network.recipe
    recipe = replace(
        recipe,
        batch=32 if options.smoke else recipe.batch,
        epochs=options.epochs or recipe.epochs,
        tuning=options.tuning or recipe.tuning,
    )
    return replace(network, recipe=recipe, **changes)


def _settings(networks: Sequence[Network], options: argparse.Namespace) -> str:
    """All that makes results comparable, as JSON: what a folder of checkpoints was made with."""
    known = {
        network.name: asdict(replace(network, build=str(getattr(network.build, "keywords", {}))))  # type: ignore[arg-type]
        for network in networks
    }
    return json.dumps({"images": options.images, "networks": known}, indent=1, sort_keys=True)


def _prepare(work: Path, settings: str, resume: bool) -> None:
    """A folder that holds nothing but what these settings made, and no failure. Raises `ConfigError`."""
    noted = work / "settings.json"
    if resume and noted.exists():
        old, new = json.loads(noted.read_text()), json.loads(settings)
        known = old["networks"].keys() & new["networks"].keys()
        if old["images"] != new["images"] or any(old["networks"][name] != new["networks"][name] for name in known):
            raise ConfigError(f"'{work}' is of a run with other settings", remedy="leave out --resume to begin anew")
        for outcome in work.glob("*/*.json"):
            if _failed(json.loads(outcome.read_text())["outcome"]["note"]):
                outcome.unlink()  # to be tried again
        settings = json.dumps({**new, "networks": old["networks"] | new["networks"]}, indent=1, sort_keys=True)
    elif noted.exists():
        shutil.rmtree(work)
    elif work.exists() and any(work.iterdir()):
        raise ConfigError(f"'{work}' holds other files", remedy="give --work a folder of its own")
    work.mkdir(parents=True, exist_ok=True)
    with replaced_file(noted) as file:
        file.write(settings.encode())


def _failed(note: str) -> bool:
    return note.startswith("failed")


def _all_stages(network: Network, seed: int, run: Run, work: Path, path: Path, extra: bool) -> None:
    """Whatever of a network and a seed is not done yet, without or with the extra stages. Raises `OutOfTime`."""
    folder = work / f"{network.name}-{seed}"
    folder.mkdir(exist_ok=True)
    context = Context(network, seed, run, folder, {})
    for stage in STAGES:
        if stage.extra and not extra:
            continue
        kept = folder / f"{stage.name}.json"
        if kept.exists():
            data = json.loads(kept.read_text())
        else:
            _say(f"{network.name}, seed {seed}: {stage.name}")
            data = _worked(stage, context)
            with replaced_file(kept) as file:
                file.write(json.dumps(data).encode())
            _say(f"    {_told(data)} in {data['seconds']:.1f} s")
        outcome = Outcome(**data["outcome"])
        if not _failed(outcome.note):
            context.done[stage.name] = outcome
        rows = [replace(row, commit=data.get("commit", "")) for row in _rows(context, stage, outcome, data["seconds"])]
        merge(path, rows, {"command": command_line(sys.argv), **_machine(run.device)}, key=KEY)


def _worked(stage: Stage, context: Context) -> dict[str, Any]:
    """The outcome of a stage, failures included, how long it took, and the commit of the code."""
    began = time.monotonic()
    context.run.require(STAGE_SECONDS)
    try:
        if stage.needs is not None and stage.needs not in context.done:
            raise RuntimeError(f"it needs the stage {stage.needs}")
        outcome = stage.work(context)
    except OutOfTime:
        raise
    except Exception as error:  # one stage more or less: the others are worth their time
        outcome = Outcome(note=f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return {"outcome": asdict(outcome), "seconds": round(time.monotonic() - began, 2), "commit": meta()["commit"]}


def _rows(context: Context, stage: Stage, outcome: Outcome, seconds: float) -> list[AccuracyRow | LayerRow]:
    name, seed = context.network.name, context.seed
    row = AccuracyRow(
        name, stage.name, seed, outcome.accuracy, outcome.loss, outcome.epochs, outcome.macs, outcome.zeros, seconds,
        outcome.note,
    )  # fmt: skip
    return [row, *(LayerRow(name, layer, seed, *errors) for layer, errors in (outcome.layers or {}).items())]


def _told(data: dict[str, Any]) -> str:
    outcome = data["outcome"]
    if outcome["accuracy"] is None:
        return str(outcome["note"])
    zeros = f", {outcome['zeros']:.0%} zeros" if outcome["zeros"] else ""
    macs = f", {outcome['macs']:.0%} of the multiplications" if outcome["macs"] < 1 else ""
    note = f", {outcome['note']}" if outcome["note"] else ""
    return f"{outcome['accuracy']:.2f} %, loss {outcome['loss']:.4f}{zeros}{macs}{note}"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
