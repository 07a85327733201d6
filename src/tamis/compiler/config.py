"""What the user may ask of a build, frozen, and recorded in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tamis.errors import ConfigError
from tamis.formats.dtype import DType

PRECISIONS = (DType.FLOAT32, DType.BFLOAT16)


@dataclass(frozen=True)
class BuildConfig:
    """Options of ``tamis.build``.

    Attributes:
        device: ``"cpu"`` (the default) or ``"cuda"``.
        precisions: the precisions that layers may run in; float32 is always allowed.
        sparsity: ``"off"`` never races sparse kernels; ``"auto"`` races them on weights that are 2:4;
            ``"force"`` prunes the other weights by magnitude first, to see what sparsity would bring. Such an
            engine is marked as not usable for accuracy.
        shapes: concrete shapes of inputs with symbolic dimensions, by input name.
        threads: cores to build for and run on; None for all of them.
        exclude_tactics: names of tactics (or prefixes up to a dot) that must not race.
        timing_cache: file that measurements are read from and added to; None for none.
        budget_seconds: time that racing may take; what is left out is recorded as skipped.
        repetitions: measurements of each candidate.
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
    sparsity: Literal["off", "auto", "force"] = "auto"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int | None = None
    exclude_tactics: tuple[str, ...] = ()
    timing_cache: Path | None = None
    budget_seconds: float = 120.0
    repetitions: int = 15
    accuracy_cosine: float = 0.999
    accuracy_relative: float = 1e-3
    samples: Mapping[str, np.ndarray] | None = None
    seed: int = 0
    dump: Path | None = None
    verify: bool = False

    def excludes(self, tactic: str) -> bool:
        """Whether a tactic must not race: it is named, or its family is (``tamis`` for ``tamis.chain``)."""
        return any(tactic == name or tactic.startswith(f"{name}.") for name in self.exclude_tactics)

    def __post_init__(self) -> None:
        """Normalise and check; raises ``ConfigError``."""
        wanted = tuple(p for p in PRECISIONS if p in {DType.FLOAT32, *map(DType, self.precisions)})
        for precision in self.precisions:
            if DType(precision) not in PRECISIONS:
                raise ConfigError(
                    f"precision {precision} is not available on this device",
                    remedy=f"choose among {', '.join(map(str, PRECISIONS))}",
                )
        object.__setattr__(self, "precisions", wanted)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}", remedy="give a number of at least 1")
        if self.repetitions < 3:
            raise ConfigError(f"repetitions is {self.repetitions}", remedy="give at least 3")
        if self.sparsity not in ("off", "auto", "force"):
            raise ConfigError(f"sparsity is {self.sparsity!r}", remedy="choose off, auto or force")
        if not 0.0 <= self.accuracy_cosine <= 1.0:
            raise ConfigError(f"accuracy_cosine is {self.accuracy_cosine}", remedy="give a number from 0 to 1")
