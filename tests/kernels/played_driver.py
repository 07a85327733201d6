"""The driver, played on the CPU.

In place of a cubin, lowering packs the source that it would compile; the driver compiles that for the emulation, and
launches with the addresses that it is given, as a GPU's would.
"""

from __future__ import annotations

from cuda_emulation import compiled, packed_map

from tamis.kernels.cuda.unit import translation_unit

FLOAT16_OR_BFLOAT16 = (6, 9)  # as the driver numbers types of tensor maps


class PlayedDriver:
    """The driver's functions on the CPU; ``failures`` are statuses that the next launches return."""

    def __init__(self) -> None:
        self.sources: dict[int, str] = {}
        self.functions: dict[int, object] = {}
        self.loaded = 0
        self.failures: list[int] = []
        self.contexts: list[int] = []
        self.allowed: dict[int, int] = {}
        self.encoded = 0
        self.early: list[bool] = []  # of each launch, whether it may start before the kernel in front ends

    def cuModuleLoadData(self, handle, cubin):
        self.loaded += 1
        handle._obj.value = self.loaded
        self.sources[handle._obj.value] = cubin.decode()
        return 0

    def cuModuleUnload(self, handle):
        del self.sources[handle.value]
        return 0

    def cuModuleGetFunction(self, function, handle, name):
        source = self.sources[handle.value]
        if f'#include "{name.decode()}.cu"' not in source and f"#define KERNEL {name.decode()}\n" not in source:
            return 500
        function._obj.value = len(self.functions) + 1
        self.functions[function._obj.value] = compiled(f"{source}EMULATED_KERNEL({name.decode()})\n")
        return 0

    def cuLaunchKernelEx(self, place, function, packed, extra):
        config = place._obj
        assert (config.stream, extra) == (77, None)
        assert config.shared_bytes <= self.allowed.get(function.value, 48 * 1024)
        attributes = [config.attributes[index] for index in range(config.count)]
        assert all((each.id, each.value) == (6, 1) for each in attributes)
        self.early.append(bool(attributes))
        if self.failures:
            return self.failures.pop(0)
        return 700 * self.functions[function.value].emulated_run(config.grid, config.block, packed)

    def cuFuncSetAttribute(self, function, attribute, value):
        assert attribute == 8
        self.allowed[function.value] = value
        return 0 if value <= 227 * 1024 else 1

    def cuTensorMapEncodeTiled(self, target, kind, rank, address, extents, strides, box, steps, *tail):
        assert kind in FLOAT16_OR_BFLOAT16
        assert list(steps) == [1] * rank and box[0] == 64
        extents, strides, box = list(extents), list(strides), list(box)
        windows = 0 if rank in (2, 4) else self.windows(extents, strides, box, 1)
        apart = [stride // 2 for stride in strides]
        if len(extents) == 2:
            assert apart == [extents[0]] or windows
            numbers = (0, *extents, 1, 1, box[1], 0, 0, 0, 0, 1, 1, 1, *apart, 0, 0)
        else:
            c, w, h, n = extents
            assert box[3] == 1
            numbers = (2, c, n, h, w, box[1], 0, 0, 0, 0, 1, 1, box[2], *apart)
        return self.encode(target, tail, address, *numbers, windows)

    def windows(self, extents, strides, box, place):
        """Takes an axis out whose neighbours are 16 bytes apart, and gives its extent."""
        windows = extents.pop(place)
        assert box.pop(place) == 1 and strides.pop(place - 1) == 16
        assert 8 * (windows - 1) + extents[0] == strides[0] // 2, "windows end with the pixel"
        return windows

    def cuTensorMapEncodeIm2col(
        self, target, kind, rank, address, extents, strides, low, high, channels, box, steps, *tail
    ):
        extents, strides, steps = list(extents), list(strides), list(steps)
        windows = 0 if rank == 4 else self.windows(extents, strides, steps, 4)
        c, w, h, n = extents
        apart = [stride // 2 for stride in strides]
        assert kind in FLOAT16_OR_BFLOAT16
        assert channels == 64 and steps[3] == 1 and list(low)[2:] == list(high)[2:] == [0] * (rank - 4)
        numbers = (1, c, n, h, w, box, *low[:2], *high[:2], *steps[1:3], 1, *apart)
        return self.encode(target, tail, address, *numbers, windows)

    def encode(self, target, tail, address, *numbers):
        assert tail == (0, 3, 3, 0), "no interleave, 128-byte swizzle, 256-byte promotion, zeros outside"
        self.encoded += 1
        target.raw = packed_map(address, *numbers)
        return 0

    def cuGetErrorName(self, status, text):
        text._obj.value = {500: b"CUDA_ERROR_NOT_FOUND"}.get(status, b"CUDA_ERROR_ILLEGAL_ADDRESS")
        return 0

    def cuGetErrorString(self, status, text):
        text._obj.value = b"words"
        return 0

    def cuDeviceGet(self, device, index):
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        return 0

    def cuCtxSetCurrent(self, context):
        self.contexts.append(1)
        return 0


def packed_source(source, defines, architecture):
    """What stands for a cubin."""
    assert architecture in ("sm_80", "sm_90", "sm_90a")
    return translation_unit(source, defines).encode()
