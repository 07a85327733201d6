"""Who broke the GPU: a kernel that does something illegal takes the device from the whole process.

Errors of a GPU come late, but all that is measured is waited for at once; so the culprit is the one at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tamis.compiler.tactics.base import Choice
from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.devices.base import Device
from tamis.engine.inspect import tactic_text
from tamis.errors import DeviceLost

_BROKE = "failed: broke the GPU: "


@dataclass(frozen=True)
class Suspect:
    """What is at hand: in words, for which layer, by which tactic, and its key in the timing cache, if it has one."""

    what: str = "a kernel"
    layer: str | None = None
    tactic: str = ""
    key: str = ""


def suspect_of(choice: Choice, layer: str, key: str) -> Suspect:
    """A candidate of a race as a suspect."""
    what = f"{tactic_text(choice.tactic, choice.parameters)} in {choice.precision}, {choice.sparsity},"
    return Suspect(what, layer, choice.tactic, key)


@contextmanager
def watch(device: Device, suspect: Suspect) -> Iterator[None]:
    """Turn an error that cost the device into ``DeviceLost``, which names the suspect; other errors pass."""
    try:
        yield
    except DeviceLost:
        raise  # somebody nearer knew whom to suspect
    except Exception as error:
        if not device.is_lost():
            raise
        symptom = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DeviceLost(
            f"{suspect.what} broke the GPU: {symptom}",
            layer=suspect.layer,
            remedy="start a new process: this one cannot use the GPU any more",
            tactic=suspect.tactic,
            culprit=suspect.key,
            symptom=symptom,
        ) from error


def note_culprit(cache: TimingCache, lost: DeviceLost) -> None:
    """Keep who broke the GPU in the timing cache, and in its file, so that nobody runs it again."""
    if lost.culprit:
        cache.put(lost.culprit, Measurement(failure=f"{_BROKE}{lost.symptom}"))
    cache.save()


def broke_device(found: Measurement | None) -> bool:
    """Whether a measurement says that the GPU was broken."""
    return found is not None and found.failure.startswith(_BROKE)
