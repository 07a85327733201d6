"""Whether a step that is said to be sparse really runs a sparse kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tamis.engine.plan import Step
from tamis.runtime.session import Inputs, Session

# "sparse", "spmma", or "sp" as a word of its own (``wgmma_sp``, ``HGMMA.SP``), but neither "transpose" nor "split".
_SPARSE = re.compile(r"sparse|spmma|(?<![a-z])sp(?![a-z])|2:4", re.IGNORECASE)


@dataclass(frozen=True)
class StepKernels:
    """A step and the kernels that it launches, as the driver or the library names them."""

    step: Step
    kernels: tuple[str, ...]

    @property
    def runs_sparse(self) -> bool:
        """Whether the name of one of its kernels says that it is sparse."""
        return any(names_sparse(name) for name in self.kernels)

    @property
    def in_doubt(self) -> bool:
        """Whether it is said to be sparse and launches no kernel of a sparse name."""
        return self.step.sparsity != "dense" and not self.runs_sparse


def names_sparse(kernel: str) -> bool:
    """Whether the name of a kernel says that it computes with a sparse operand."""
    return _SPARSE.search(kernel) is not None


def step_kernels(session: Session, inputs: Inputs) -> tuple[StepKernels, ...]:
    """The kernels of every step of one run."""
    names = session.kernel_names(session.check(inputs))
    return tuple(StepKernels(step, each) for step, each in zip(session.plan.steps, names, strict=True))


def unproven(steps: tuple[StepKernels, ...]) -> tuple[StepKernels, ...]:
    """The steps that are in doubt."""
    return tuple(each for each in steps if each.in_doubt)
