"""Running engines: sessions, benchmarks and profiles."""

from tamis.runtime.benchmark import BenchResult, bench, percentile
from tamis.runtime.match import EngineWarning
from tamis.runtime.profiler import Profile, StepTime, profile, timing_of
from tamis.runtime.samples import random_inputs
from tamis.runtime.session import Session, open_device
from tamis.runtime.sparse_proof import StepKernels, step_kernels, unproven

__all__ = [
    "BenchResult",
    "EngineWarning",
    "Profile",
    "Session",
    "StepKernels",
    "StepTime",
    "bench",
    "open_device",
    "percentile",
    "profile",
    "random_inputs",
    "step_kernels",
    "timing_of",
    "unproven",
]
