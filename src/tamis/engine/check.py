"""Whether a plan can be run at all: every value is made before it is read, and lies inside its memory."""

from __future__ import annotations

from math import prod

from tamis.engine.plan import Buffer, Plan
from tamis.errors import CorruptEngine


def check_plan(plan: Plan) -> None:
    """Raise ``CorruptEngine`` for a plan whose steps cannot run in order on its buffers."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    if len(buffers) != len(plan.buffers):
        _refuse("two buffers have one name")
    for buffer in plan.buffers:
        _check_memory(buffer, buffers, plan)
    known = {_root(buffers, name).name for name in _known(plan.input_values, buffers, "the inputs")}
    known |= set(plan.input_values)
    for step in plan.steps:
        for name in _known(step.inputs, buffers, f"step '{step.name}'"):
            if name not in known and _root(buffers, name).name not in known:
                _refuse(f"step '{step.name}' reads '{name}' before it is computed")
        for name in _known(step.outputs, buffers, f"step '{step.name}'"):
            known |= {name, _root(buffers, name).name}
    for name in _known(plan.output_values, buffers, "the outputs"):
        if name not in known and _root(buffers, name).name not in known:
            _refuse(f"the output '{name}' is never computed")
    _check_ports(plan, buffers)
    _check_streams(plan, buffers)


def _check_streams(plan: Plan, buffers: dict[str, Buffer]) -> None:
    """Steps that may run at the same time must not write what the other uses, and none may be left running."""
    if not any(step.stream or step.waits for step in plan.steps):
        return
    ended: list[dict[int, int]] = []  # for each step, the last step of each stream that has ended when it starts
    latest: dict[int, int] = {}
    for number, step in enumerate(plan.steps):
        known: dict[int, int] = {}
        before = (latest[step.stream],) if step.stream in latest else ()
        for other in (*before, *step.waits):
            if not 0 <= other < number:
                _refuse(f"step '{step.name}' waits for step {other}, which is not before it")
            for stream, last in {**ended[other], plan.steps[other].stream: other}.items():
                known[stream] = max(known.get(stream, -1), last)
        ended.append(known)
        latest[step.stream] = number
        for other in range(number):
            first = plan.steps[other]
            if first.stream == step.stream or known.get(first.stream, -1) >= other:
                continue
            writes, uses = (set(s.outputs) for s in (first, step)), ({*s.inputs, *s.outputs} for s in (step, first))
            if any(_meet(a, b, buffers) for a, b in zip(writes, uses, strict=True)):
                _refuse(f"steps '{first.name}' and '{step.name}' may run at the same time and use the same memory")
    if plan.steps[-1].stream or any(ended[-1].get(s, -1) < last for s, last in latest.items() if s):
        _refuse("steps on other streams may still run when the last one has ended")


def _meet(written: set[str], used: set[str], buffers: dict[str, Buffer]) -> bool:
    """Whether some value that is written lies where one that is used does."""
    for a in written:
        for b in used:
            one, two = _root(buffers, a), _root(buffers, b)
            overlap = one.offset < two.offset + two.size_bytes and two.offset < one.offset + one.size_bytes
            if one.name == two.name or (one.place == two.place == "arena" and overlap):
                return True
    return False


def _check_ports(plan: Plan, buffers: dict[str, Buffer]) -> None:
    for ports, values in ((plan.inputs, plan.input_values), (plan.outputs, plan.output_values)):
        if len(ports) != len(values):
            _refuse("the inputs or outputs do not fit their values")
        for port, value in zip(ports, values, strict=True):
            buffer = buffers[value]
            if buffer.shape != port.shape or buffer.format.dtype != port.dtype:
                _refuse(f"'{port.name}' and its buffer '{value}' differ in shape or type")
    for value in plan.input_values:
        if buffers[value].place != "input":
            _refuse(f"the input value '{value}' is not placed in an input")


def _check_memory(buffer: Buffer, buffers: dict[str, Buffer], plan: Plan) -> None:
    size = prod(buffer.shape) * buffer.format.dtype.size_bytes
    if buffer.place == "arena" and not 0 <= buffer.offset <= plan.arena_bytes - size:
        _refuse(f"buffer '{buffer.name}' does not lie inside the arena")
    if buffer.place == "alias":
        base = _root(buffers, buffer.name)
        if size > prod(base.shape) * base.format.dtype.size_bytes:
            _refuse(f"buffer '{buffer.name}' is larger than '{base.name}', which it is a view of")


def _known(names: tuple[str, ...], buffers: dict[str, Buffer], who: str) -> tuple[str, ...]:
    for name in names:
        if name not in buffers:
            _refuse(f"{who} name the value '{name}', which has no buffer")
    return names


def _root(buffers: dict[str, Buffer], name: str) -> Buffer:
    """The buffer that owns the memory of a buffer."""
    buffer, hops = buffers[name], 0
    while buffer.place == "alias":
        hops += 1
        if buffer.alias_of not in buffers or hops > len(buffers):
            _refuse(f"buffer '{name}' is a view of '{buffer.alias_of}', which does not exist")
        buffer = buffers[buffer.alias_of]
    return buffer


def _refuse(cause: str) -> None:
    raise CorruptEngine(f"the plan is inconsistent: {cause}", remedy="build the engine again")
