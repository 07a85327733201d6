"""Loading cubins and launching their kernels, by the driver itself.

The driver's library is there wherever a GPU works, so ctypes needs nothing installed. A launch is one call on
arguments that were packed when the step was bound; only addresses are written anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int, c_uint, c_uint32, c_void_p, pointer
from typing import Any

from tamis.devices.cuda.overlap import OVERLAP
from tamis.devices.cuda.shared_library import Signature, load_first
from tamis.errors import DeviceError

_INVALID_CONTEXT = 201
_NO_BINARY_FOR_GPU = 209
_CAPTURE_INVALIDATED = 901
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
# Of a tensor map: target, type, rank, address, extents and strides; at the end how the box lies and what is outside.
_MAP_HEAD = (c_void_p, c_int, c_uint32, c_void_p, c_void_p, c_void_p)
_MAP_TAIL = (c_int, c_int, c_int, c_int)


class LaunchAttribute(Structure):
    """``CUlaunchAttribute``, whose value is a union of 64 bytes."""

    _fields_ = (("id", c_int), ("pad", c_char * 4), ("value", c_int), ("rest", c_char * 60))


class LaunchConfig(Structure):
    """``CUlaunchConfig``; ``count`` says how many attributes there are."""

    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared_bytes", c_uint), ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)), ("count", c_uint),
    )  # fmt: skip


_SIGNATURES: tuple[Signature, ...] = (
    ("cuModuleLoadData", c_int, (POINTER(c_void_p), c_char_p)),
    ("cuModuleUnload", c_int, (c_void_p,)),
    ("cuModuleGetFunction", c_int, (POINTER(c_void_p), c_void_p, c_char_p)),
    ("cuLaunchKernelEx", c_int, (c_void_p, c_void_p, c_void_p, c_void_p)),
    ("cuGetErrorName", c_int, (c_int, POINTER(c_char_p))),
    ("cuGetErrorString", c_int, (c_int, POINTER(c_char_p))),
    ("cuDeviceGet", c_int, (POINTER(c_int), c_int)),
    ("cuDevicePrimaryCtxRetain", c_int, (POINTER(c_void_p), c_int)),
    ("cuCtxSetCurrent", c_int, (c_void_p,)),
    ("cuStreamCreate", c_int, (POINTER(c_void_p), c_uint)),
    ("cuFuncSetAttribute", c_int, (c_void_p, c_int, c_int)),
    ("cuTensorMapEncodeTiled", c_int, (*_MAP_HEAD, c_void_p, c_void_p, *_MAP_TAIL)),
    ("cuTensorMapEncodeIm2col", c_int, (*_MAP_HEAD, c_void_p, c_void_p, c_uint32, c_uint32, c_void_p, *_MAP_TAIL)),
)
_SHARED_MEMORY = 8  # the attribute of a function that says how much a launch may ask for
_USUAL_SHARED_BYTES = 48 * 1024  # that it may ask for anyway
_NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream


@functools.cache
def load_driver() -> Any:
    """The driver's library. ``MissingLibrary`` where there is none."""
    return load_first("the NVIDIA driver", ("libcuda.so.1",), _SIGNATURES, "install the NVIDIA driver")


def check(driver: Any, status: int, what: str, layer: str) -> None:
    """Raise ``DeviceError`` with the driver's words for a result that is not success."""
    if not status:
        return
    remedy = "build the engine for this GPU" if status == _NO_BINARY_FOR_GPU else None
    raise DeviceError(f"{what} failed: {words(driver, status)}", layer=layer, remedy=remedy)


def words(driver: Any, status: int) -> str:
    """The name of a result and what the driver says about it."""
    name, text = c_char_p(), c_char_p()
    driver.cuGetErrorName(status, byref(name))
    driver.cuGetErrorString(status, byref(text))
    first, second = ((part.value or b"").decode(errors="replace") for part in (name, text))
    return f"{first or status} ({second})"


def use_device(driver: Any, index: int, layer: str) -> None:
    """Make the context that PyTorch uses on a device current in this thread."""
    device, context = c_int(), c_void_p()
    check(driver, driver.cuDeviceGet(byref(device), index), "cuDeviceGet", layer)
    check(driver, driver.cuDevicePrimaryCtxRetain(byref(context), device), "cuDevicePrimaryCtxRetain", layer)
    check(driver, driver.cuCtxSetCurrent(context), "cuCtxSetCurrent", layer)


def create_stream(device: int) -> int:
    """The address of a new stream, which nothing else in the process uses. It is never destroyed."""
    driver, stream = load_driver(), c_void_p()
    use_device(driver, device, "")
    check(driver, driver.cuStreamCreate(byref(stream), _NON_BLOCKING), "making a stream", "")
    return int(stream.value or 0)


class Module:
    """A cubin on a GPU, unloaded with its last user. ``DeviceError`` if it was made for another GPU."""

    def __init__(self, cubin: bytes, device: int, layer: str) -> None:
        self._driver, self._device, self._layer = load_driver(), device, layer
        use_device(self._driver, device, layer)
        handle = c_void_p()
        check(self._driver, self._driver.cuModuleLoadData(byref(handle), cubin), "loading a kernel", layer)
        self._handle = handle

    def __del__(self) -> None:
        # At the end of the process the driver may be gone; its answer does not matter then.
        if hasattr(self, "_handle"):
            self._driver.cuModuleUnload(self._handle)

    def launcher(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[int],
        shared_bytes: int = 0,
        *,
        overlaps: bool = False,
    ) -> Callable[[int], None]:
        """A function that launches a kernel on a stream (its address).

        ``arguments`` are addresses of what each parameter gets by then; a kernel reads as many bytes as it has. The
        caller keeps them. ``overlaps``: the kernel itself waits for the one before it on the stream, so it may be
        started while that one runs. ``DeviceError`` for a kernel that is not there, or more shared memory than the GPU
        has.
        """
        driver, layer, device = self._driver, self._layer, self._device
        function = c_void_p()
        status = driver.cuModuleGetFunction(byref(function), self._handle, name.encode())
        check(driver, status, f"finding the kernel '{name}'", layer)
        if shared_bytes > _USUAL_SHARED_BYTES:
            status = driver.cuFuncSetAttribute(function, _SHARED_MEMORY, shared_bytes)
            check(driver, status, f"{shared_bytes} bytes of shared memory for '{name}'", layer)
        packed = (c_void_p * len(arguments))(*arguments)
        attribute = pointer(LaunchAttribute(_PROGRAMMATIC_STREAM_SERIALIZATION, value=1))
        config = LaunchConfig((c_uint * 3)(*grid), (c_uint * 3)(*block), shared_bytes, None, attribute)
        place, launch = byref(config), driver.cuLaunchKernelEx

        def run(stream: int, _keep: object = self) -> None:
            config.stream = stream
            config.count = overlaps and OVERLAP.on
            status = launch(place, function, packed, None)
            if status == _INVALID_CONTEXT:  # the first launch of this thread
                use_device(driver, device, layer)
                status = launch(place, function, packed, None)
            if status and config.count and status != _CAPTURE_INVALIDATED:
                refused, config.count = status, 0
                status = launch(place, function, packed, None)
                # A recording that the refusal has ended is made again by whoever records.
                if status in (0, _CAPTURE_INVALIDATED):
                    OVERLAP.refuse(words(driver, refused))
            if status:
                check(driver, status, f"launching the kernel '{name}'", layer)

        return run
