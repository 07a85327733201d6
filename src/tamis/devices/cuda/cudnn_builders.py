"""Processes that build cuDNN's plans ahead, for graphs that cuDNN compiles when it builds them.

That takes 0.3 to 4 s a plan, and the Python package holds the interpreter's lock meanwhile: threads would wait for each
other, and a race for every plan. A builder plans for the GPU by its properties alone, sees no GPU itself, and leaves
what it built in the store of compiled kernels, where binding a step looks first. Builders save time and nothing else:
what they cannot build is built, or refused, when a step is bound.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe

import torch

from tamis.devices.child_process import child_environment
from tamis.devices.cuda.cudnn import Context, context
from tamis.devices.cuda.cudnn_problem import ConvProblem
from tamis.errors import TamisError


class Builder:
    """One process, started when it is first asked for a plan."""

    def __init__(self, shared: Context) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._broken = False

    def build(self, problem: ConvProblem, rank: int) -> None:
        """Have a plan built; returns when it is stored, refused, or known to be beyond this process."""
        with self._lock:
            if self._broken:
                return
            try:
                connection = self._connection or self._start()
                connection.send((problem, rank))
                refusal = connection.recv()
            except (OSError, EOFError):  # it does not start, or died of this plan: the race will find out
                self._broken = True
                return
        if refusal:
            self._shared.refuse(problem, rank, refusal)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()  # what it has built is stored, whole
            self._process.wait()

    def _start(self) -> Connection:
        store = self._shared.store
        assert store is not None
        here, there = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tamis.devices.cuda.cudnn_builder_main", str(there.fileno())],
                env=child_environment() | {"CUDA_VISIBLE_DEVICES": ""},
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            there.close()
        self._connection = here
        here.send((self._shared.properties, self._shared.versions, store.folder, store.most_bytes))
        return here


class PlanBuilders:
    """Builders that share the problems of a build among them; all ranks of a problem go to the same one."""

    def __init__(self, shared: Context, count: int) -> None:
        self._builders = tuple(Builder(shared) for _ in range(count))
        self._places: dict[ConvProblem, int] = {}
        self._lock = threading.Lock()

    def build(self, problem: ConvProblem, rank: int) -> None:
        """Have a plan built ahead. Many threads may ask; each waits for its own plan."""
        with self._lock:
            place = self._places.setdefault(problem, len(self._places) % len(self._builders))
        self._builders[place].build(problem, rank)

    def stop(self) -> None:
        """End all processes."""
        for builder in self._builders:
            builder.stop()


@contextlib.contextmanager
def plan_builders(count: int) -> Iterator[PlanBuilders | None]:
    """Builders for the current GPU; None where cuDNN cannot plan for it from afar, or nothing can be stored."""
    try:
        shared = context(torch.cuda.current_device())
    except (TamisError, RuntimeError, AssertionError):  # no GPU, or no package
        yield None
        return
    if not shared.properties or shared.store is None:
        yield None
        return
    builders = PlanBuilders(shared, count)
    try:
        yield builders
    finally:
        builders.stop()
