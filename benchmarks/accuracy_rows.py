"""The rows of ``bench_accuracy.py``, and the lines of the tables made from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BENCH, LAYERS = "accuracy", "accuracy-layers"
KEY = ("bench", "model", "stage", "seed")
HEADER = ("network", "what", "seeds", "epochs", "multiplications", "zeros", "top-1 %", "against dense",
          "against dense of as many epochs", "loss", "goal")  # fmt: skip
LAYER_HEADER = ("network", "seeds", "layers", "magnitude's error / SparseGPT's, median", "least", "layer", "goal")
WORDS = {
    "dense": "dense",
    "magnitude": "2:4 by magnitude, not tuned",
    "permuted": "channels permuted, 2:4 by magnitude, not tuned",
    "sparsegpt": "2:4 by SparseGPT, not tuned",
    "tuned-2:4": "2:4 by magnitude, tuned",
    "tuned-sparsegpt": "2:4 by SparseGPT, tuned",
    "tuned-1:4": "1:4, tuned",
    "channels": "channels removed, tuned",
    "channels-2:4": "channels removed, then 2:4, tuned",
    "dense-longer": "dense, trained on as long as 2:4",
    "dense-longest": "dense, trained on as long as channels and 2:4",
}
CONTROLS = ("dense-longer", "dense-longest")
LEAST_DENSE = {"resnet18": 94.5, "resnet18-long": 94.5}  # percent
LARGEST_LOSS = {"tuned-2:4": 0.2, "tuned-sparsegpt": 0.2, "channels": 1.0}  # points against dense
LEAST_RATIO = 1.5  # of the median layer's errors


@dataclass(frozen=True)
class AccuracyRow:
    """One stage of one network and seed. Without numbers: a note that begins with ``failed`` says why, or the stage
    looked at layers.

    ``epochs`` are all since the network was built; ``macs`` is the fraction of multiplications left, ``zeros`` that of
    the weights that follow a pattern; accuracy is in percent, ``loss`` the cross-entropy, both on the test images.
    """

    model: str
    stage: str
    seed: int
    accuracy: float | None
    loss: float | None
    epochs: int
    macs: float
    zeros: float
    seconds: float
    note: str = ""
    commit: str = ""
    bench: str = BENCH


@dataclass(frozen=True)
class LayerRow:
    """Relative output errors of one layer (``stage``) pruned alone to 2:4, on unseen images."""

    model: str
    stage: str
    seed: int
    magnitude: float
    sparsegpt: float
    commit: str = ""
    bench: str = LAYERS


Row = Mapping[str, Any]


def accuracy_lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line for each network and stage: means over seeds, and their standard deviations."""
    rows = [row for row in rows if row["bench"] == BENCH and row["accuracy"] is not None]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        dense = {row["seed"]: row for row in mine if row["stage"] == "dense"}
        for stage, words in WORDS.items():
            found = [row for row in mine if row["stage"] == stage]
            if not found:
                continue
            losses = _differences(found, lambda row, dense=dense: dense.get(row["seed"]))  # type: ignore[misc]
            fair = _differences(found, lambda row, mine=mine: _control(row, mine))  # type: ignore[misc]
            yield (
                model, words, str(len(found)), _range(row["epochs"] for row in found),
                f"{statistics.mean(row['macs'] for row in found):.0%}",
                f"{statistics.mean(row['zeros'] for row in found):.0%}",
                spread([row["accuracy"] for row in found]),
                spread(losses, sign=True) if stage != "dense" else "",
                spread(fair, sign=True) if stage not in ("dense", *CONTROLS) else "",
                spread([row["loss"] for row in found], 3),
                _goal(model, stage, found, losses),
            )  # fmt: skip


def layer_lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line for each network: the median layer of each seed, averaged, and the layer that gains least of all."""
    rows = [row for row in rows if row["bench"] == LAYERS]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        ratios = {(row["seed"], row["stage"]): row["magnitude"] / row["sparsegpt"] for row in mine}
        seeds = dict.fromkeys(seed for seed, _ in ratios)
        medians = [statistics.median(ratio for (each, _), ratio in ratios.items() if each == seed) for seed in seeds]
        least = min(ratios, key=lambda place: ratios[place])
        median = statistics.mean(medians)
        yield (
            model, str(len(seeds)), str(len({layer for _, layer in ratios})), spread(medians), f"{ratios[least]:.2f}",
            least[1], f"median at least {LEAST_RATIO}: {_met(median >= LEAST_RATIO)}",
        )  # fmt: skip


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each stage that failed."""
    failed = [row for row in rows if row["bench"] == BENCH and row["note"].startswith("failed")]
    return [
        f"{row['model']}, seed {row['seed']}, {WORDS.get(row['stage'], row['stage'])}: {row['note']}." for row in failed
    ]


def spread(values: Sequence[float], digits: int = 2, *, sign: bool = False) -> str:
    """The mean, and the standard deviation of the sample where there is one."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _differences(rows: Iterable[Row], other: Callable[[Row], Row | None]) -> list[float]:
    """Points of accuracy against another row of the same seed, where there is one."""
    pairs = [(row, other(row)) for row in rows]
    return [row["accuracy"] - base["accuracy"] for row, base in pairs if base is not None]


def _control(row: Row, rows: Sequence[Row]) -> Row | None:
    """The dense network of the same seed that trained as long, or longer; of several, the one that trained least."""
    known = [
        each
        for each in rows
        if each["stage"] in ("dense", *CONTROLS) and each["seed"] == row["seed"] and each["epochs"] >= row["epochs"]
    ]
    return min(known, key=lambda each: each["epochs"], default=None)


def _goal(model: str, stage: str, rows: Sequence[Row], losses: Sequence[float]) -> str:
    if stage == "dense" and model in LEAST_DENSE:
        mean = statistics.mean(row["accuracy"] for row in rows)
        return f"at least {LEAST_DENSE[model]}: {_met(mean >= LEAST_DENSE[model])}"
    if stage in LARGEST_LOSS and losses:
        limit = LARGEST_LOSS[stage]
        return f"within {limit} of dense: {_met(statistics.mean(losses) >= -limit)}"
    return ""


def _met(yes: bool) -> str:
    return "met" if yes else "**missed**"


def _range(values: Iterable[int]) -> str:
    known = sorted(set(values))
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"
