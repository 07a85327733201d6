from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from sample_engines import DEVICE, F32, FakeDevice, make_engine, make_plan, reference
from tamis.devices.base import Runner, Slots
from tamis.engine import Buffer, Engine, Format, Port, Step, save
from tamis.errors import ConfigError, DeviceError, EngineMismatch, InputError
from tamis.formats.dtype import DType
from tamis.runtime import Session, open_device

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def session() -> Session:
    return Session(make_engine(), device=FakeDevice())


def test_runs_by_name_and_by_order(session: Session) -> None:
    np.testing.assert_array_equal(session.run({"x": X})["out"], reference(X))
    np.testing.assert_array_equal(session.run([X])["out"], reference(X))


def test_runs_from_a_file(tmp_path: Path) -> None:
    save(make_engine(), tmp_path / "a.tamis")
    session = Session(tmp_path / "a.tamis", device=FakeDevice())
    np.testing.assert_array_equal(session.run([X])["out"], reference(X))


class OnlyDLPack:
    """An array of some other library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(X),
        torch.from_numpy(X.copy()).t().contiguous().t(),
        torch.from_numpy(X.copy()).requires_grad_(),
        OnlyDLPack(X),
        np.asfortranarray(X),
        np.repeat(X, 2, axis=1)[:, ::2],
        X.astype(">f4"),
        np.frombuffer(X.tobytes(), np.float32).reshape(2, 4),
    ],
    ids=[
        "torch",
        "strided torch",
        "with gradient",
        "dlpack",
        "fortran",
        "strided",
        "big-endian",
        "read-only",
    ],
)
def test_accepts_every_kind_of_tensor(session: Session, given: object) -> None:
    np.testing.assert_array_equal(session.run({"x": given})["out"], reference(X))


def test_outputs_are_fresh_arrays(session: Session) -> None:
    first = session.run([X])["out"]
    session.run([X + 1])
    np.testing.assert_array_equal(first, reference(X))


def test_torch_outputs_are_fresh_tensors(session: Session) -> None:
    first = session.run([X], output="torch")["out"]
    session.run([X + 1])
    assert isinstance(first, torch.Tensor)
    torch.testing.assert_close(first, torch.from_numpy(reference(X)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": X.astype(np.float64)}, "has the type float64, expected float32"),
        ({"x": X[:1]}, r"has the shape \[1, 4\], expected \[2, 4\]"),
        ({"x": X.reshape(8)}, r"has the shape \[8\], expected \[2, 4\]"),
        ({"y": X}, "no input 'y', expected x"),
        ({"x": X, "y": X}, "no input 'y', expected x"),
        ({}, "input 'x' is missing"),
        ([], "0 inputs were given, expected 1"),
        ([X, X], "2 inputs were given, expected 1"),
        ([[1.0, 2.0]], "is a list, expected a tensor"),
        ([np.array(["a"])], "cannot be read as a tensor"),
        ([X.astype(object)], "cannot be read as a tensor"),
        ([None], "is a NoneType, expected a tensor"),
    ],
)
def test_wrong_inputs_are_named(session: Session, inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        session.run(inputs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_bound_runs_see_changes_of_their_inputs(session: Session) -> None:
    given = X.copy()
    launch = session.bind([given])
    np.testing.assert_array_equal(launch()[0].numpy(), reference(X))
    given += 1
    np.testing.assert_array_equal(launch()[0].numpy(), reference(X + 1))


def test_two_bound_runs_do_not_mix(session: Session) -> None:
    one, two = session.bind([X]), session.bind([X + 1])
    one()
    two()
    np.testing.assert_array_equal(one()[0].numpy(), reference(X))


def test_run_into(session: Session) -> None:
    out = torch.empty(2, 4)
    session.run_into([torch.from_numpy(X)], [out])
    np.testing.assert_array_equal(out.numpy(), reference(X))


def test_trace_gives_every_value(session: Session) -> None:
    values = dict(session.trace([X]))
    assert list(values) == ["y", "z", "out"]
    np.testing.assert_array_equal(values["y"], 2 * X)
    np.testing.assert_array_equal(values["out"], reference(X))
    assert list(dict(session.trace([X], frozenset({"z"})))) == ["z"]


def test_memory_given_by_libraries_is_released(session: Session) -> None:
    held = []
    bind = session.device.bind

    def spying(step: Step, *rest: object) -> object:
        runner = bind(step, *rest)  # type: ignore[arg-type]

        def run(slots: list[object]) -> None:
            runner(slots)
            if step.name == "double":
                held.append(weakref.ref(slots[2]))

        return run

    session.device.bind = spying  # type: ignore[method-assign]
    launch = Session(session.engine, device=session.device).bind([X])
    launch()
    gc.collect()
    assert len(held) == 1 and held[0]() is None


def test_poison_leaves_a_right_plan_alone() -> None:
    np.testing.assert_array_equal(
        Session(make_engine(), device=FakeDevice(), poison=True).run([X])["out"], reference(X)
    )


def test_poison_finds_a_value_read_after_its_end() -> None:
    """Without poison the value is still there, by luck."""
    plan = make_plan()
    late = replace(plan.steps[2], inputs=("y", "x"))
    engine = Engine(replace(plan, steps=(*plan.steps[:2], late)), make_engine().tensors)
    assert not np.isnan(Session(engine, device=FakeDevice()).run([X])["out"]).any()
    assert np.isnan(Session(engine, device=FakeDevice(), poison=True).run([X])["out"]).all()


def test_poison_finds_a_value_never_written() -> None:
    plan = make_plan()
    broken = replace(plan, steps=(replace(plan.steps[0], kernel="fake.noop"), *plan.steps[1:]))
    session = Session(Engine(broken, make_engine().tensors), device=FakeDevice(), poison=True)
    assert np.isnan(session.run([X])["out"]).all()


class EagerDevice(FakeDevice):
    """A step that waits for another one runs the moment the other is done, before anything behind that."""

    def ordered(self, steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
        def run(number: int, slots: Slots) -> None:
            runners[number](slots)
            for other, step in enumerate(steps):
                if step.stream and step.waits == (number,):
                    runners[other](slots)

        return [
            partial(run, number) if not step.stream else lambda slots: None for number, step in enumerate(steps)
        ]  # fmt: skip


def test_poison_spares_what_a_step_aside_writes_at_once() -> None:
    """``c`` takes the memory of ``a`` as soon as ``b`` is there."""
    lives = {"a": (0, 1, 0), "b": (1, 4, 64), "c": (2, 4, 0), "d": (3, 4, 128), "out": (4, 5, 192)}
    plan = make_plan(
        buffers=(
            Buffer("x", (2, 4), F32, "input", 0, 0, 32),
            *(Buffer(name, (2, 4), F32, "arena", first, last, 32, at) for name, (first, last, at) in lives.items()),
        ),
        steps=(
            Step("one", "fake.scale", ("x",), ("a",), ("w",)),
            Step("two", "fake.scale", ("a",), ("b",), ("w",)),
            Step("short", "fake.scale", ("b",), ("c",), ("w",), stream=1, waits=(1,)),
            Step("three", "fake.scale", ("b",), ("d",), ("w",)),
            Step("add", "fake.add", ("c", "d"), ("out",), waits=(2,)),
        ),
        arena_bytes=256,
    )
    session = Session(Engine(plan, make_engine().tensors), device=EagerDevice(), poison=True)
    np.testing.assert_array_equal(session.run([X])["out"], 16 * X)


@pytest.mark.parametrize("place", ["arena", "device"])
def test_views(place: str) -> None:
    """x [1,2,2,3] channels-last -> scaled -> the same bytes as [1,6,2] -> out."""
    plan = make_plan(
        inputs=(Port("x", (1, 3, 2, 2), DType.FLOAT32),),
        outputs=(Port("out", (6, 2), DType.FLOAT32),),
        buffers=(
            Buffer("x", (1, 3, 2, 2), F32, "input", 0, 0, 48),
            Buffer("y", (1, 3, 2, 2), Format(layout="channels_last"), place, 0, 1, 48),  # type: ignore[arg-type]
            Buffer("v", (1, 6, 2), F32, "alias", 0, 1, 48, alias_of="y"),
            Buffer("w", (6, 2), F32, "alias", 0, 1, 48, alias_of="v"),
            Buffer("out", (6, 2), F32, "arena", 1, 2, 48, offset=64),
        ),
        steps=(
            Step("scale", "fake.scale", ("x",), ("y",), ("w",)),
            Step("double", "fake.add", ("w", "w"), ("out",)),
        ),
    )
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    device = FakeDevice()
    if place == "device":  # make the library return what the plan says
        bind = device.bind

        def channels_last(step: Step, *rest: object) -> object:
            runner = bind(step, *rest)  # type: ignore[arg-type]

            def run(slots: list[torch.Tensor]) -> None:
                runner(slots)
                if step.name == "scale":
                    slots[1] = slots[1].contiguous(memory_format=torch.channels_last)

            return run

        device.bind = channels_last  # type: ignore[assignment,method-assign]
    session = Session(Engine(plan, make_engine().tensors), device=device)
    expected = 4 * x.transpose(0, 2, 3, 1).reshape(6, 2)
    for _ in range(2):
        np.testing.assert_array_equal(session.run([x])["out"], expected)


def test_an_output_may_be_a_view_of_an_input() -> None:
    plan = make_plan(
        steps=(),
        outputs=(Port("flat", (8,), DType.FLOAT32),),
        output_values=("flat",),
        buffers=(
            Buffer("x", (2, 4), F32, "input", 0, 0, 32),
            Buffer("flat", (8,), F32, "alias", 0, 0, 32, alias_of="x"),
        ),
    )
    given = X.copy()
    out = Session(Engine(plan, {}), device=FakeDevice()).run([given])["flat"]
    given += 1
    np.testing.assert_array_equal(out, X.reshape(8))


def test_bfloat16_in_and_out() -> None:
    plan = make_plan()
    brief = Format(DType.BFLOAT16)
    plan = replace(
        plan,
        inputs=(Port("x", (2, 4), DType.BFLOAT16),),
        outputs=(Port("out", (2, 4), DType.BFLOAT16),),
        buffers=tuple(replace(b, format=brief) for b in plan.buffers),
    )
    engine = Engine(plan, {"w": np.array([2.0], ml_dtypes.bfloat16)})
    session = Session(engine, device=FakeDevice(), poison=True)
    for given in (X.astype(ml_dtypes.bfloat16), torch.from_numpy(X).bfloat16()):
        out = session.run([given])["out"]
        assert out.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(out.astype(np.float32), reference(X))
    with pytest.raises(InputError, match="expected bfloat16"):
        session.run([X])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cuda"}, "device kind 'cuda'"),
        ({"architecture": "aarch64"}, "built for aarch64, this machine is fake64"),
        ({"features": ("mul", "amx_bf16")}, "a device with amx_bf16, which a fake lacks"),
    ],
)
def test_an_engine_of_another_device_is_refused(changes: dict[str, object], message: str) -> None:
    engine = make_engine(device=replace(DEVICE, **changes))  # type: ignore[arg-type]
    with pytest.raises(EngineMismatch, match=message):
        Session(engine, device=FakeDevice())


def test_more_features_are_welcome() -> None:
    Session(make_engine(device=replace(DEVICE, features=("mul",))), device=FakeDevice())


def test_another_library_version_warns() -> None:
    engine = make_engine(device=replace(DEVICE, libraries={"fakelib": "2.0"}))
    with pytest.warns(UserWarning, match=r"fakelib 2\.0, here is 1\.0"):
        Session(engine, device=FakeDevice())


def test_another_library_version_is_refused_where_its_own_form_is_stored() -> None:
    plan = make_plan(device=replace(DEVICE, libraries={"fakelib": "2.0"}))
    steps = (replace(plan.steps[0], attributes={"serialized_by": "fakelib"}), *plan.steps[1:])
    with pytest.raises(EngineMismatch, match="step 'scale' depends on it"):
        Session(Engine(replace(plan, steps=steps), make_engine().tensors), device=FakeDevice())


def test_threads() -> None:
    device = FakeDevice()
    assert Session(make_engine(), device=device).threads == device.threads == 2
    assert Session(make_engine(), device=device, threads=3).threads == device.threads == 3
    with pytest.raises(ConfigError, match="threads is 0"):
        Session(make_engine(), device=device, threads=0)
    with pytest.raises(ConfigError, match="threads is '2'"):
        Session(make_engine(), device=device, threads="2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the device is 'cuda'"):
        Session(make_engine(), device="cuda")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="built for 64 threads, this machine has 4 cores"):
        assert Session(make_engine(threads=64), device=device).threads == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_engine_for_cuda_needs_a_gpu() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        Session(make_engine(device=replace(DEVICE, kind="cuda")))


def test_an_unknown_device_kind_is_refused() -> None:
    with pytest.raises(DeviceError, match="tpu"):
        open_device("tpu")


def test_more_threads_than_cores_are_refused_on_a_cpu() -> None:
    info = replace(DEVICE, kind="cpu")
    session = Session(make_engine(device=info), device=FakeDevice(info), threads=os.cpu_count() or 1)
    assert session.threads == (os.cpu_count() or 1)
    with pytest.raises(ConfigError, match=r"threads is 9999, this machine has \d+ cores"):
        Session(make_engine(device=info), device=FakeDevice(info), threads=9999)
