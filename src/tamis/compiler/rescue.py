"""Going on with a build in a new process, once a kernel has broken the GPU for this one.

The new process is handed the model, the options and the timing cache, in which the culprit stands as failed; so it
finds what was measured before and leaves the culprit out. It runs ``rescue_main`` and nothing of the user's script.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

import onnx

from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.tuner.cache import TimingCache
from tamis.devices.child_process import child_environment
from tamis.engine.file import Engine, read
from tamis.errors import BuildError, DeviceLost

Model: TypeAlias = str | Path | bytes | onnx.ModelProto

# New processes for one build. An algorithm may break on several layers, and each time it is another candidate.
_MOST_PROCESSES = 16


class BuildWarning(UserWarning):
    """An engine was built, but not without trouble."""


@dataclass(frozen=True)
class Job:
    """What a new process has to do: build ``model`` and save the engine as ``output``."""

    model: Model
    config: BuildConfig
    output: Path


def go_on(
    lost: DeviceLost,
    cache: TimingCache | None,
    model: Model,
    config: BuildConfig,
    tell: Progress,
    launch: Callable[[Job, Progress], Engine] | None = None,
) -> Engine:
    """Build in new processes, until one ends without breaking the GPU.

    Args:
        lost: how this process lost the GPU.
        cache: what this process measured; None when it lost the GPU before.
        model: what is to be built.
        config: the options; every process has the whole time budget.
        tell: hears of the progress.
        launch: runs a job in a new process; it raises what the build there raises.

    Raises ``DeviceLost`` when one candidate breaks the GPU twice, or when too many do; beside that what a build raises.
    """
    launch = launch or run_in_new_process
    _warn("this process cannot use the GPU any more; run engines on it in a new one")
    with tempfile.TemporaryDirectory(prefix="tamis-") as name:
        folder = Path(name)
        times = config.timing_cache or folder / "times.json"
        if cache is not None and cache.path is None:
            cache.merge_into(times)
        samples = None if config.samples is None else dict(config.samples)  # open files cannot be handed over
        job = Job(
            model,
            replace(config, timing_cache=times, samples=samples, shapes=dict(config.shapes)),
            folder / "engine.tamis",
        )
        culprits: set[str] = set()
        for _ in range(_MOST_PROCESSES):
            culprits.add(lost.culprit)
            if lost.culprit:
                where = f"layer '{lost.layer}': " if lost.layer else ""
                _warn(f"{where}{lost.cause}; it is left out")
            tell("a kernel broke the GPU; going on in a new process", 0, 1, "")
            try:
                return launch(job, tell)
            except DeviceLost as again:
                if not again.culprit or again.culprit in culprits:
                    raise _give_up(again, f"{again.cause}, in a new process too") from again
                lost = again
    raise _give_up(lost, f"{lost.cause}, as {len(culprits)} others did before") from lost


def _warn(text: str) -> None:
    warnings.warn(text, BuildWarning, stacklevel=4)


def _give_up(lost: DeviceLost, cause: str) -> DeviceLost:
    remedy = f"exclude the tactic {lost.tactic} from the build" if lost.tactic else "check the GPU and its driver"
    return DeviceLost(cause, layer=lost.layer, remedy=remedy, tactic=lost.tactic)


def run_in_new_process(job: Job, tell: Progress) -> Engine:
    """The engine of a job, built by a Python process of its own; progress and warnings come back from it.

    Raises what the build there raises, and ``BuildError`` when the process does not start or dies.
    """
    folder = job.output.parent
    try:
        (folder / "job").write_bytes(pickle.dumps(job))
    except Exception as error:  # whatever pickle and protobuf raise, for models beyond 2 GiB say
        raise BuildError(
            f"the build cannot go on in a new process, the model cannot be handed over: {error}",
            remedy="give the model as the path of its file",
        ) from error
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as channel, (folder / "stderr").open("wb") as stderr:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tamis.compiler.rescue_main", str(folder / "job"), str(sending)],
                env=_environment(job.config.device),
                pass_fds=(sending,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        except OSError as error:
            raise BuildError(
                f"the build cannot go on, no new Python process starts: {error}",
                remedy="build again with the same timing cache",
            ) from error
        finally:
            os.close(sending)
        try:
            return _listen(channel, job, tell) or _explain_death(process.wait(), folder / "stderr")
        finally:
            process.kill()  # all it had to say is said; and nobody waits for it after an interrupt
            process.wait()


def _listen(channel: IO[bytes], job: Job, tell: Progress) -> Engine | None:
    """Pass on what the process says, up to its engine or its error; None when it falls silent before."""
    for kind, content in _messages(channel):
        if kind == "progress":
            tell(*content)
        elif kind == "warning":
            text, category = content
            warnings.warn(text, category, stacklevel=4)
        elif kind == "error":
            raise content
        else:
            return read(job.output)
    return None


def _messages(channel: IO[bytes]) -> Iterator[tuple[str, Any]]:
    while True:
        try:
            message = pickle.load(channel)
        except (EOFError, pickle.UnpicklingError):  # it closed the channel, or died in the middle of a word
            return
        yield message


def _explain_death(code: int, stderr: Path) -> NoReturn:
    text = stderr.read_text(errors="replace").strip()
    last = f": {text.splitlines()[-1][:200]}" if text else ""
    error = BuildError(
        f"the process in which the build went on ended with exit code {code}{last}",
        remedy="build again with the same timing cache, in a new process",
    )
    error.add_note(text)
    raise error


def _environment(device: str) -> dict[str, str]:
    """The variables of the new process: it finds the modules that this one finds, and sees this one's GPU first."""
    environment = child_environment()
    if device == "cuda":
        from tamis.devices.cuda.info import visible_from  # noqa: PLC0415  only the device in use is loaded

        environment |= visible_from(environment)
    return environment
