"""Whether an engine may run on the device at hand."""

from __future__ import annotations

import warnings

from tamis.engine.plan import DeviceInfo, Plan
from tamis.errors import EngineMismatch


class EngineWarning(UserWarning):
    """An engine runs, but not quite where or as it was built to."""


def check_device(plan: Plan, device: DeviceInfo) -> None:
    """Raise ``EngineMismatch`` when the engine cannot run here; warn when it can, but was tuned elsewhere.

    Another kind, another architecture or a missing CPU feature is refused. Another version of a library is
    refused only when a step keeps data in that library's own serialised form, which it names in its attribute
    ``serialized_by``; for all other steps the weights are prepared anew when the engine is loaded.
    """
    built = plan.device
    if built.kind != device.kind:
        _refuse(f"the engine was built for the device kind '{built.kind}', this is '{device.kind}'")
    if built.architecture != device.architecture:
        _refuse(f"the engine was built for {built.architecture}, this machine is {device.architecture}")
    missing = [feature for feature in built.features if feature not in device.features]
    if missing:
        _refuse(f"the engine was built for a device with {', '.join(missing)}, which {device.name} lacks")
    for name, version in built.libraries.items():
        here = device.libraries.get(name)
        if here == version:
            continue
        cause = f"the engine was built with {name} {version}, here is {here or 'none'}"
        users = [step.name for step in plan.steps if step.attributes.get("serialized_by") == name]
        if users:
            _refuse(f"{cause}, and step '{users[0]}' depends on it")
        warnings.warn(f"{cause}; its results are right, its speed may differ", EngineWarning, stacklevel=3)


def _refuse(cause: str) -> None:
    raise EngineMismatch(cause, remedy="build the engine again on this machine")
