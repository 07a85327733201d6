"""What pruning each layer costs and what it saves: ranked, as text and as JSON.

The loss is one of three, called the proxy:

1. ``sqnr``: the power of the error of the model's outputs over the power of the outputs, of the worst output. 0.01 is a
   signal-to-quantisation-noise ratio of 20 dB. Errors of several layers add up about like that: their powers do when
   they have nothing to do with each other.
2. ``loss``: by how much a loss rises.
3. ``metric``: by how much an accuracy falls.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from tamis.errors import ConfigError
from tamis.files import versioned_json

REPORT_VERSION = 1
# What writes reports and plans.
WRITERS = "give a file that 'tamis sensitivity' wrote"

Proxy: TypeAlias = Literal["sqnr", "loss", "metric"]


@dataclass(frozen=True)
class LayerTime:
    """What 2:4 saves in one layer as it is compiled, in microseconds; 0 where it does not pay.

    ``weights`` are its weights (initializers) and ``modules`` the torch modules that hold them, where known: several
    when a compiler merges layers, which then are 2:4 together or not at all.
    """

    name: str
    weights: tuple[str, ...]
    modules: tuple[str, ...]
    saved_us: float


@dataclass(frozen=True)
class MeasuredTimes:
    """What 2:4 saves on one device: ``whole_us`` is the time of the whole dense model."""

    device: str
    whole_us: float
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True)
class Sensitivity:
    """One layer pruned alone, or several that can only be pruned together.

    Attributes:
        name: of the layer.
        weights: its weights: names in a state dict, or initializers.
        modules: torch modules of the weights, where known.
        pattern: how they were pruned.
        loss: what that costs, by the report's proxy; infinite when outputs are not finite any more.
        removed: weight elements that become zero.
        saved_us: microseconds saved; 0 where no kernel makes use of the pattern or it does not pay, None if nobody
            measured.
    """

    name: str
    weights: tuple[str, ...]
    modules: tuple[str, ...]
    pattern: str
    loss: float
    removed: int
    saved_us: float | None

    @property
    def price(self) -> float:
        """The loss for each millisecond saved; infinite where none is saved."""
        return max(self.loss, 0.0) / (self.saved_us / 1e3) if self.saved_us else math.inf


@dataclass(frozen=True)
class Skipped:
    """A layer that was not pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class SensitivityReport:
    """All layers.

    Attributes:
        proxy: what the losses are.
        dense: the loss or the metric of the dense model; None for ``sqnr``.
        data: in words, what the model was run on.
        rows: each layer with each pattern that fits it, in the order of the model.
        skipped: layers that no pattern fits, and "layer at pattern" where only some do.
        whole_us: the time of the dense model in microseconds; None if nobody measured.
        device: where that was; empty if nobody measured.
    """

    proxy: Proxy
    dense: float | None
    data: str
    rows: tuple[Sensitivity, ...]
    skipped: tuple[Skipped, ...] = ()
    whole_us: float | None = None
    device: str = ""
    version: int = field(default=REPORT_VERSION)

    @property
    def ranked(self) -> tuple[Sensitivity, ...]:
        """The rows, the cheapest milliseconds first; then those that save nothing, the least loss first."""
        return tuple(sorted(self.rows, key=lambda row: (row.price, row.loss, row.name)))

    def loss_text(self, loss: float) -> str:
        """A loss of this report in words."""
        return loss_text(self.proxy, loss)

    def __str__(self) -> str:
        timed = self.whole_us is not None
        where = f"; times of {self.device}, dense {self.whole_us / 1e3:.3f} ms" if self.whole_us is not None else ""
        lines = [f"{len(self.rows)} prunings measured on {self.data}{where}"]
        for row in self.ranked:
            cost = self.loss_text(row.loss)
            saved = f", saves {row.saved_us:.1f} us" if timed and row.saved_us is not None else ""
            lines.append(f"  {row.name} {row.pattern}: {cost}{saved}")
        lines += [f"  {skipped.name}: {skipped.reason}" for skipped in self.skipped]
        return "\n".join(lines)


def sqnr_db(loss: float) -> float:
    """The signal-to-noise ratio in decibels of a loss of the proxy ``sqnr``; 999 when there is no noise."""
    return 999.0 if loss <= 0 else -999.0 if math.isinf(loss) else -10 * math.log10(loss)


def loss_of_db(sqnr: float) -> float:
    """The loss of the proxy ``sqnr`` of a signal-to-noise ratio in decibels."""
    return float(10.0 ** (-sqnr / 10))


def loss_text(proxy: Proxy, loss: float) -> str:
    """A loss in words."""
    if math.isinf(loss):
        return "outputs not finite"
    if proxy == "sqnr":
        return "no error" if loss <= 0 else f"SQNR {sqnr_db(loss):.1f} dB"
    return f"loss {loss:+.4g}" if proxy == "loss" else f"accuracy {-loss:+.4g}"


def report_data(report: SensitivityReport) -> dict[str, Any]:
    """The report as plain data for JSON; an infinite loss is null."""
    data = asdict(report)
    for row in data["rows"]:
        row["loss"] = None if math.isinf(row["loss"]) else row["loss"]
    return data


def report_json(report: SensitivityReport) -> str:
    """The report as JSON; equal reports give equal text."""
    return json.dumps(report_data(report), indent=1, allow_nan=False) + "\n"


def report_from_json(text: str | bytes, name: str = "the text") -> SensitivityReport:
    """The inverse of ``report_json``. Raises ``ConfigError``, with the ``name`` of the text, for anything else."""
    data = versioned_json(text, name, "a sensitivity report", REPORT_VERSION, WRITERS)
    try:
        rows = tuple(
            made(Sensitivity, {**row, "loss": math.inf if row["loss"] is None else float(row["loss"])})
            for row in data["rows"]
        )
        skipped = tuple(made(Skipped, entry) for entry in data["skipped"])
        if data["proxy"] not in ("sqnr", "loss", "metric"):
            raise ValueError(f"there is no proxy {data['proxy']!r}")
        report: SensitivityReport = made(SensitivityReport, {**data, "rows": rows, "skipped": skipped})
        return report
    except (ValueError, TypeError, KeyError) as error:
        raise inconsistent(name, "a sensitivity report", error) from error


def made(kind: Any, data: dict[str, Any]) -> Any:
    """A dataclass from plain data, lists as tuples; ``ValueError`` when a field is missing or unknown."""
    names = {entry.name for entry in fields(kind)}
    if set(data) != names:
        raise ValueError(f"fields {sorted(set(data) ^ names)} too many or too few")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def inconsistent(name: str, what: str, error: Exception) -> ConfigError:
    """The error for data that do not fit together."""
    return ConfigError(f"{name} is {what} that is inconsistent ({error})", remedy="write it again with this version")
