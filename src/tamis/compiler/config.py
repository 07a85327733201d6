"""What the user may ask of a build, frozen, and recorded in the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tamis.errors import ConfigError
from tamis.formats.dtype import DType

# What each device can compute in, from the most accurate to the least.
PRECISIONS: Mapping[str, tuple[DType, ...]] = {
    "cpu": (DType.FLOAT32, DType.BFLOAT16),
    "cuda": (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16),
}
# Short names of precisions, as the command line takes them.
PRECISION_NAMES: Mapping[str, DType] = {
    "fp32": DType.FLOAT32, "tf32": DType.TF32, "bf16": DType.BFLOAT16, "fp16": DType.FLOAT16,
}  # fmt: skip
# What a build spends its time on, as progress names it. "device" is told twice: opening it, and measuring its rates.
STAGES = ("device", "import", "passes", "compile", "race", "search", "contest", "save")
# Called with (stage, done, total, what is being done).
Progress: TypeAlias = Callable[[str, int, int, str], None]
# Turns in a race, and library algorithms offered to it, at each optimization level.
_REPETITIONS = (3, 5, 9, 15, 21, 31)
_ALGORITHMS = (1, 2, 4, 8, 8, 16)


def matches_layer(pattern: str, layer: str) -> bool:
    """Whether a pattern means a layer: it is its name, whatever brackets that holds, or has wildcards that fit it."""
    return layer == pattern or fnmatchcase(layer, pattern)


def names_tactic(name: str, tactic: str) -> bool:
    """Whether a name means a tactic: it is its own, or that of its family (``tamis`` for ``tamis.chain``)."""
    return tactic == name or tactic.startswith(f"{name}.")


@dataclass(frozen=True)
class BuildConfig:
    """Options of ``tamis.build``.

    Attributes:
        device: ``"cpu"`` (the default) or ``"cuda"``.
        precisions: the precisions that layers may run in; float32 is always allowed. The CPU has float32 and
            bfloat16, CUDA also tf32 (float32 values, products of 10-bit mantissas) and float16.
        layer_precisions: precisions by layer name or shell pattern (``encoder.*``), the first match counts: layers
            that match may run in these only, and in float32 when that is all that works.
        sparsity: ``"off"`` never races sparse kernels; ``"auto"`` races them on weights that are 2:4;
            ``"force"`` prunes the other weights by magnitude first, to see what sparsity would bring. Such an
            engine is marked as not usable for accuracy.
        shapes: concrete shapes of inputs with symbolic dimensions, by input name.
        threads: cores to build for and run on; None for all of them.
        exclude_tactics: names of tactics (or prefixes up to a dot) that must not race.
        timing_cache: file that measurements are read from and added to; None for none.
        budget_seconds: time that racing may take; what is left out is recorded as skipped.
        optimization_level: 0 to 5, how hard to search: turns in a race and library algorithms offered to it.
            3 is the default; 0 builds fast, 5 offers everything.
        repetitions: measurements of each candidate; None for those of the level.
        accuracy_cosine: smallest cosine between an output and its float32 reference that a lower precision
            may have.
        accuracy_relative: largest error, over the largest reference value, that float32 tactics may have.
        samples: sample inputs by name for the accuracy guard; None for random ones.
        seed: seed of everything random in a build.
        dump: folder that receives the graph after every pass.
        verify: check the graph between passes.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    precisions: tuple[DType, ...] = (DType.FLOAT32,)
    layer_precisions: tuple[tuple[str, tuple[DType, ...]], ...] = ()
    sparsity: Literal["off", "auto", "force"] = "auto"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int | None = None
    exclude_tactics: tuple[str, ...] = ()
    timing_cache: Path | None = None
    budget_seconds: float = 120.0
    optimization_level: int = 3
    repetitions: int | None = None
    accuracy_cosine: float = 0.999
    accuracy_relative: float = 1e-3
    samples: Mapping[str, np.ndarray] | None = None
    seed: int = 0
    dump: Path | None = None
    verify: bool = False

    def excludes(self, tactic: str) -> bool:
        """Whether a tactic must not race: it is named, or its family is (``tamis`` for ``tamis.chain``)."""
        return any(names_tactic(name, tactic) for name in self.exclude_tactics)

    @property
    def turns(self) -> int:
        """How often each candidate of a race is measured."""
        return self.repetitions if self.repetitions is not None else _REPETITIONS[self.optimization_level]

    @property
    def algorithms(self) -> int:
        """How many algorithms of a library race for one layer."""
        return _ALGORITHMS[self.optimization_level]

    @property
    def raced_precisions(self) -> tuple[DType, ...]:
        """Every precision that some layer may run in."""
        return self._known((*self.precisions, *(p for _, precisions in self.layer_precisions for p in precisions)))

    def precisions_of(self, layer: str) -> tuple[DType, ...]:
        """The precisions that a layer may run in."""
        for pattern, precisions in self.layer_precisions:
            if matches_layer(pattern, layer):
                return precisions
        return self.precisions

    def _require_kinds(self) -> None:
        """Numbers are numbers: from Python a text may come in their place."""
        whole = ("threads", "optimization_level", "repetitions", "seed")
        for names, kinds, what in (
            (whole, Integral, "a whole number"),
            (("budget_seconds", "accuracy_cosine", "accuracy_relative"), Real, "a number"),
            (("shapes", "samples"), Mapping, "a mapping of input names"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not isinstance(value, kinds):
                    raise ConfigError(f"{name} is {value!r}, not {what}", remedy=f"give {what}")
        for name, shape in self.shapes.items():
            if not all(isinstance(size, Integral) for size in shape):  # those of a text are texts
                raise ConfigError(
                    f"the shape of {name} is {shape!r}", remedy="give whole numbers, such as (1, 3, 224, 224)"
                )

    def __post_init__(self) -> None:
        """Normalise and check; raises ``ConfigError``."""
        self._require_kinds()
        if self.device not in PRECISIONS:
            raise ConfigError(f"there is no device '{self.device}'", remedy=f"choose {' or '.join(PRECISIONS)}")
        wanted: Iterable[DType | str] = self.precisions
        if isinstance(wanted, str):
            wanted = (wanted,)
        object.__setattr__(self, "precisions", self._known((DType.FLOAT32, *wanted)))
        by_layer = tuple((name, self._known(precisions)) for name, precisions in self.layer_precisions)
        object.__setattr__(self, "layer_precisions", by_layer)
        self._take_texts()
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}", remedy="give a number of at least 1")
        if not 0 <= self.optimization_level < len(_REPETITIONS):
            raise ConfigError(f"the level is {self.optimization_level}", remedy="give a number from 0 to 5")
        if not self.budget_seconds >= 0:  # NaN neither
            raise ConfigError(f"the budget is {self.budget_seconds:g} s", remedy="give seconds, 0 or more")
        if self.seed < 0:
            raise ConfigError(f"the seed is {self.seed}", remedy="give a number of at least 0")
        if self.repetitions is not None and self.repetitions < 3:
            raise ConfigError(f"repetitions is {self.repetitions}", remedy="give at least 3")
        if self.sparsity not in ("off", "auto", "force"):
            raise ConfigError(f"sparsity is {self.sparsity!r}", remedy="choose off, auto or force")
        if not 0.0 <= self.accuracy_cosine <= 1.0:
            raise ConfigError(f"accuracy_cosine is {self.accuracy_cosine}", remedy="give a number from 0 to 1")
        if not self.accuracy_relative >= 0:
            raise ConfigError(f"accuracy_relative is {self.accuracy_relative}", remedy="give a number of at least 0")

    def _take_texts(self) -> None:
        """Texts for paths, and one for a tactic, as people write them in Python."""
        excluded: Iterable[str] = self.exclude_tactics
        if isinstance(excluded, str):
            excluded = (excluded,)
        object.__setattr__(self, "exclude_tactics", tuple(excluded))
        for name in ("timing_cache", "dump"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))

    def _known(self, precisions: Iterable[DType | str]) -> tuple[DType, ...]:
        """Precisions in the device's order; ``ConfigError`` for one that it does not have."""
        offered = PRECISIONS[self.device]
        precisions = [PRECISION_NAMES.get(precision, precision) for precision in precisions]
        for precision in precisions:
            if precision not in offered:
                raise ConfigError(
                    f"precision {precision} is not available on the device '{self.device}'",
                    remedy=f"choose among {', '.join(map(str, offered))}",
                )
        return tuple(p for p in offered if p in set(precisions))
