"""A GPU as a device: memory, the families of kernels that steps may name, and graphs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from tamis.devices import tensors
from tamis.devices.aten import kernels as aten
from tamis.devices.aten.strides import view_strides
from tamis.devices.base import BoundShape, Ranges, Runner, Tensor
from tamis.devices.cuda import attention, cublaslt, cudnn, cusparselt, graph, kernels, nvml, streams
from tamis.devices.cuda.info import cuda_info, require_cuda
from tamis.devices.cuda.kernel_names import kernel_names
from tamis.devices.cuda.stopwatch import CudaStopwatch
from tamis.devices.cuda.strides import natural_strides, reads_strided
from tamis.devices.cuda.workspace import Workspace
from tamis.devices.strides import Strides
from tamis.engine.plan import DeviceInfo, DeviceState, Format, Step
from tamis.errors import DeviceError

# Who runs a kernel, by the start of its name.
BINDERS = (
    ("aten.", aten.bind),
    ("cuda.", kernels.bind),
    (attention.KERNEL, attention.bind),
)
# Those of libraries that compute in scratch memory, which they are given.
LIBRARY_BINDERS = (
    ("cublaslt.", cublaslt.bind),
    ("cudnn.", cudnn.bind),
    ("cusparselt.", cusparselt.bind),
)


class CudaDevice:
    """The current GPU. Raises ``DeviceError`` when PyTorch can use none, ``DeviceLost`` when this process broke it.

    Steps of one stream of a plan, bound by one object, share scratch memory: they must not run at the same time.
    PyTorch's own float32 products are made strict, for the whole process: tf32 is a precision that layers are given by
    name.
    """

    replays = True

    def __init__(self) -> None:
        require_cuda()
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.torch_device)
        self.cache_bytes = properties.L2_cache_size
        self.memory_bytes = properties.total_memory
        self._uuid = str(properties.uuid)
        self._info = cuda_info(self.torch_device.index)
        # One for each stream of a plan, since steps of two streams run at the same time.
        self._workspaces: dict[int, Workspace] = {}
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def info(self) -> DeviceInfo:
        """The GPU and the versions of the libraries."""
        return self._info

    def state(self) -> DeviceState | None:
        """Clocks, power and heat now; None where the driver's management library is missing."""
        return nvml.read_state(self._uuid)

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """A row-major copy of an array on the GPU."""
        return tensors.upload(array).to(self.torch_device)

    def empty(self, shape: Sequence[int], format: Format) -> torch.Tensor:
        """An uninitialised tensor."""
        with self.torch_device:
            return tensors.empty(shape, format)

    def arena(self, size_bytes: int) -> torch.Tensor:
        """One block of uninitialised memory."""
        with self.torch_device:
            return tensors.arena(size_bytes)

    def view(self, arena: torch.Tensor, offset: int, shape: Sequence[int], format: Format) -> torch.Tensor:
        """A tensor at ``offset`` bytes of an arena."""
        return tensors.view(arena, offset, shape, format)

    def download(self, tensor: torch.Tensor) -> np.ndarray:
        """A row-major NumPy copy, by way of page-locked memory."""
        dense = tensor.detach().contiguous()
        host = torch.empty(dense.shape, dtype=dense.dtype, pin_memory=True)
        host.copy_(dense, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return tensors.download(host)

    def runs_aside(self, step: Step) -> bool:
        """Whether a step may run on a second stream: it allocates nothing, and its scratch memory is its stream's."""
        return streams.runs_aside(step)

    def ordered(self, steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
        """The runners of the steps, on their streams, with events between them."""
        return streams.ordered(steps, runners)

    def stage(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor of the host or the GPU into ``target``, in the order of the stream."""
        if source.device.type == "cpu":
            source = source.pin_memory()  # the allocator keeps it until the copy is done
        target.copy_(source, non_blocking=True)

    def lies_in(self, tensor: torch.Tensor, format: Format) -> bool:
        """Whether a tensor has the type and the memory order of a format."""
        return tensors.lies_in(tensor, format)

    def bind(
        self,
        step: Step,
        constants: Mapping[str, Tensor],
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
    ) -> Runner:
        """A runner for a step; everything that can be prepared is prepared here.

        Raises ``DeviceError`` for a kernel that does not exist here and ``MissingLibrary`` for one whose library is
        not installed.
        """
        with torch.inference_mode(), self.torch_device:
            for prefix, binder in BINDERS:
                if step.kernel.startswith(prefix):
                    return binder(step, constants, inputs, outputs)
            for prefix, library_binder in LIBRARY_BINDERS:
                if step.kernel.startswith(prefix):
                    workspace = self._workspaces.setdefault(step.stream, Workspace(self.torch_device))
                    return library_binder(step, constants, inputs, outputs, workspace)
        raise DeviceError(
            f"kernel {step.kernel} is not one of the GPU's",
            layer=step.name,
            remedy="build the engine for cuda",
        )

    def writes_into_memory(self, step: Step) -> bool:
        """Whether a step can write its outputs into memory that it is given, at no extra cost."""
        if step.kernel.startswith(aten.PREFIX):
            return aten.supports_out(step.kernel, step.attributes)
        # PyTorch's attention and its fused convolutions allocate their results.
        if step.kernel == attention.KERNEL:
            return False
        return step.kernel != "cudnn.torch_conv" or step.attributes["fused"] == "none"

    def may_alias(self, step: Step) -> bool:
        """Whether an output of the step may share memory with its first input."""
        return step.kernel.startswith(aten.PREFIX) and aten.may_alias(step.kernel)

    def view_strides(
        self, step: Step, shape: Sequence[int], strides: Sequence[int], outputs: Sequence[Sequence[int]]
    ) -> tuple[Strides, ...] | None:
        """The strides of a step's outputs as views of its first input; None where it computes or copies."""
        return view_strides(step, shape, strides, outputs)

    def reads_strided(self, step: Step, index: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Whether a step reads its input ``index`` in place when it has these strides."""
        return reads_strided(step, index, shape, strides)

    def natural_strides(
        self, step: Step, shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]
    ) -> Strides | None:
        """The strides in which a step leaves its output when it need not be dense; None if dense."""
        return natural_strides(step, shapes, strides)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What ``run`` gives to the GPU, as one CUDA graph."""
        return graph.record(run)

    def part_timer(self, parts: Sequence[Callable[[], None]], *, recorded: bool = True) -> Callable[[], list[float]]:
        """A function that runs the parts, as one CUDA graph if ``recorded``, and returns the microseconds of each."""
        return graph.part_timer(parts, recorded=recorded)

    def kernel_names(self, steps: Sequence[Step], parts: Sequence[Callable[[], None]]) -> list[tuple[str, ...]]:
        """The kernels of each part, as the driver names them."""
        return kernel_names(parts)

    def ranges(self) -> Ranges | None:
        """NVTX ranges, on the host's side of each launch."""
        return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work given to it."""
        torch.cuda.synchronize(self.torch_device)

    def is_lost(self) -> bool:
        """Whether waiting for the GPU fails: the error of a broken context comes back from every call."""
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False

    def stopwatch(self, *, cold: bool) -> CudaStopwatch:
        """A stopwatch; ``cold`` evicts the L2 cache before each call."""
        return CudaStopwatch(cold=cold)

    def set_threads(self, threads: int) -> None:
        """Nothing: the host only launches."""
