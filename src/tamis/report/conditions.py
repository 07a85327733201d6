"""How the device was doing when an engine was measured."""

from __future__ import annotations

from tamis.engine.plan import Conditions, DeviceState


def condition_lines(conditions: Conditions | None) -> list[str]:
    """One line of clocks, power and heat, and a warning when the device was slowed down; none where none are known."""
    if conditions is None:
        return []
    before, after = conditions.before, conditions.after
    lines = [f"Measured at {state_text(after)}; before the races {state_text(before)}"]
    heat = before.slowed_by_heat or after.slowed_by_heat
    power = before.slowed_by_power or after.slowed_by_power
    causes = " and ".join(cause for cause, present in (("heat", heat), ("its power limit", power)) if present)
    if causes:
        lines.append(f"Warning: the GPU was slowed down by {causes}; its times depend on how long it has been busy")
    return lines


def state_text(state: DeviceState) -> str:
    """Such as ``1980 MHz, 412 W of 700 W, 45 C``, as far as it is known."""
    limit = f" of {state.power_limit_w:.0f} W" if state.power_limit_w else ""
    parts = (
        f"{state.sm_mhz:.0f} MHz" if state.sm_mhz else "",
        f"{state.power_w:.0f} W{limit}" if state.power_w else "",
        f"{state.temperature_c:.0f} C" if state.temperature_c else "",
    )
    return ", ".join(part for part in parts if part) or "an unknown state"
