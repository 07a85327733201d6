"""The implementations that race on a GPU, all with the same 2:4 weights: PyTorch in four ways, and Tamis in two."""

from __future__ import annotations

import copy
import gzip
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from compile_cache import CompileCache
from cuda_race import Contestant, Machine, Outputs, Replay, copies_needed
from models import ModelSpec, get

if TYPE_CHECKING:
    from tamis.runtime import Session

# What a Tamis build may use besides float32, and what PyTorch holds its tensors in.
TAMIS_PRECISIONS = {
    "float32": ("float32",), "tf32": ("float32", "tf32"), "bfloat16": ("float32", "tf32", "bfloat16"),
    "float16": ("float32", "tf32", "float16"),
}  # fmt: skip
STORED_AS = {
    "float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


class NotApplicable(Exception):
    """The implementation has nothing to do with this model; there is no row for it."""


@dataclass(frozen=True)
class Case:
    """A model at a batch size; ``compile_seconds`` is about what torch.compile takes for it without a cache."""

    name: str
    model: str
    batch: int
    compile_seconds: int = 30


@dataclass(frozen=True)
class Setting:
    """What all contestants of a case share.

    Attributes:
        inputs: float values exact in the precision, held in its type; row-major, on the device.
        module: the pruned model in float32, on the host.
        onnx: gives the path of the exported model, waiting for it if need be.
        plans: folder that receives the plans of Tamis's engines, with the time of every step.
    """

    case: Case
    precision: str
    machine: Machine
    spec: ModelSpec
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    onnx: Callable[[], Path]
    timing_cache: Path
    build_seconds: float
    level: int
    compile_cache: CompileCache
    plans: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs, the outputs and what PyTorch computes with."""
        return STORED_AS[self.precision]

    def copies(self) -> list[dict[str, torch.Tensor]]:
        """The inputs as often as the replays rotate through them."""
        size = sum(tensor.nbytes for tensor in self.inputs.values())
        count = copies_needed(size, self.machine.l2_bytes)
        return [{name: tensor.clone() for name, tensor in self.inputs.items()} for _ in range(count)]


class Ported(nn.Module):
    """A float32 model with inputs and outputs of another type: what Tamis gets, so that its ports equal PyTorch's."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        result = self.model(*(value.float() if value.is_floating_point() else value for value in inputs))
        return result.to(self.dtype) if isinstance(result, torch.Tensor) else tuple(v.to(self.dtype) for v in result)


def export_case(case: Case, module: nn.Module, precision: str, path: Path) -> None:
    """Write a case's model as ONNX with ports in the precision's type. Weights over 1.5 GB lie beside the file.

    Nothing is compared here, which would run the model on the CPU: the race checks the outputs.
    """
    from tamis.sparsity import export_onnx  # noqa: PLC0415

    spec = get(case.model)
    inputs = stored(spec.inputs(case.batch), STORED_AS[precision])
    model = Ported(module, STORED_AS[precision])
    export_onnx(model, tuple(inputs.values()), path, input_names=list(inputs), output_names=spec.outputs, compare=False)


def stored(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs with their floating-point values in another type."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def reference(setting: Setting) -> tuple[list[torch.Tensor], int]:
    """Outputs of the model in strict float32, run by PyTorch on the device, and the FLOPs of a run.

    A multiply-add counts as two, zeros as if they were dense.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    module = copy.deepcopy(setting.module).to(setting.machine.device)
    inputs = [value.float() if value.is_floating_point() else value for value in setting.inputs.values()]
    with torch.no_grad(), float32_products(tf32=False), FlopCounterMode(display=False) as counter:
        outputs = [output.clone() for output in flat(module(*inputs))]
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise ArithmeticError("the reference itself is not finite")
    return outputs, counter.get_total_flops()


def flat(result: torch.Tensor | tuple[torch.Tensor, ...]) -> Outputs:
    return [result] if isinstance(result, torch.Tensor) else list(result)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Whether PyTorch's float32 products on the GPU are those of tf32, for a while."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# --- PyTorch -----------------------------------------------------------------------------------------------


def eager(setting: Setting) -> Contestant:
    """PyTorch's own kernels under a CUDA graph."""
    module = for_torch(setting)
    return Contestant("torch-eager", setting.precision, "dense", recorded(setting, module), "CUDA graph")


def semi_structured(setting: Setting) -> Contestant:
    """As ``eager``, with the 2:4 weights of the linear layers in PyTorch's compressed form where it takes them."""
    if setting.dtype not in (torch.float16, torch.bfloat16):
        raise NotApplicable("PyTorch's semi-structured kernels have no float32")
    module = for_torch(setting)
    total, converted, reason = compress_linears(module)
    if not converted:
        raise NotApplicable(reason or "the model has no 2:4 linear layers")
    note = f"CUDA graph; {converted} of {total} linear layers compressed"
    return Contestant("torch-semi-structured", setting.precision, "2:4", recorded(setting, module), note)


def compress_linears(module: nn.Module) -> tuple[int, int, str]:
    """Compress all linear weights that are 2:4 and that PyTorch has kernels for: (found, compressed, a refusal)."""
    from torch.sparse import to_sparse_semi_structured  # noqa: PLC0415

    total, converted, reason = 0, 0, ""
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        total += 1
        if not is_two_of_four(layer.weight):
            continue
        try:
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
            converted += 1
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
    return total, converted, reason


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether at most two of every four weights along the inputs are not zero."""
    return weight.shape[-1] % 4 == 0 and bool(((weight.detach().reshape(-1, 4) != 0).sum(1) <= 2).all())


def compiled(setting: Setting) -> Contestant:
    """torch.compile as fast as it gets: all kernels tuned, weights frozen, and a CUDA graph without its call overhead.

    The mode that makes graphs itself copies the inputs in every call; here the compiled function is recorded like all
    others.
    """
    import torch._inductor.config  # noqa: PLC0415

    torch._inductor.config.freezing = True
    module = for_torch(setting)
    cached = setting.compile_cache.load(setting.case.name)
    start = time.perf_counter()
    function = torch.compile(module, mode="max-autotune-no-cudagraphs", dynamic=False)
    with torch.no_grad(), float32_products(tf32=setting.precision == "tf32"):
        function(*arguments(setting.inputs))  # compiled on the usual stream, not on the one that is recorded
    replays = recorded(setting, function)
    seconds = time.perf_counter() - start
    note = f"max-autotune, freezing, CUDA graph; compiled in {seconds:.0f} s{' from a cache' if cached else ''}"
    note += setting.compile_cache.save(setting.case.name)
    return Contestant("torch.compile", setting.precision, "dense", replays, note)


def for_torch(setting: Setting) -> nn.Module:
    """The model as PyTorch runs it best: fused attention, the precision's type, images with channels innermost."""
    module = copy.deepcopy(setting.module)
    for part in module.modules():
        # transformers' models are built with plain attention, which exports well but is slow in PyTorch
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("sdpa")
    module = module.to(setting.machine.device, setting.dtype).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = channels_last(parameter.data)
    return module


def recorded(setting: Setting, module: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> list[Replay]:
    """A replay for each copy of the inputs."""

    def runner(inputs: tuple[torch.Tensor, ...]) -> Replay:
        def run() -> Outputs:
            with torch.no_grad():
                return flat(module(*inputs))

        return run

    copies = [arguments(values) for values in setting.copies()]
    with float32_products(tf32=setting.precision == "tf32"):
        return setting.machine.record([runner(inputs) for inputs in copies])


def arguments(inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(channels_last(value) for value in inputs.values())


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


# --- Tamis -------------------------------------------------------------------------------------------------

OWN_PRODUCTS = ("tamis.hopper", "tamis.ampere")


def tamis_auto(setting: Setting) -> Contestant:
    """Tamis, free to use the sparsity."""
    return tamis_engine(setting, "tamis", "auto")


def tamis_dense(setting: Setting) -> Contestant:
    """Tamis without sparse kernels."""
    return tamis_engine(setting, "tamis-dense", "off")


def tamis_libraries(setting: Setting) -> Contestant:
    """Tamis without its own tensor-core kernels: what 2:4 brings where only libraries have it."""
    return tamis_engine(setting, "tamis-libraries", "auto", OWN_PRODUCTS)


def tamis_libraries_dense(setting: Setting) -> Contestant:
    """The same without sparse kernels."""
    return tamis_engine(setting, "tamis-libraries-dense", "off", OWN_PRODUCTS)


def tamis_engine(setting: Setting, impl: str, sparsity: str, excluded: tuple[str, ...] = ()) -> Contestant:
    import tamis  # noqa: PLC0415

    path = setting.onnx()
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = tamis.build(
            path,
            device=setting.machine.device.type,
            precisions=TAMIS_PRECISIONS[setting.precision],
            sparsity=sparsity,
            timing_cache=setting.timing_cache,
            budget_seconds=setting.build_seconds,
            optimization_level=setting.level,
            exclude_tactics=excluded,
        )
        seconds = time.perf_counter() - start
        session = tamis.load(engine)
        replays = [session.bind(inputs) for inputs in setting.copies()]
    plan = engine.plan
    if setting.plans is not None:
        keep_plan(setting, impl, session)
    sparse = sum(layer.chosen_sparsity == "2:4" for layer in plan.layers)
    winner = next(record.name for record in plan.engines if record.chosen)
    unrecorded = [str(w.message) for w in caught if "CUDA graph" in str(w.message)]
    notes = [
        f"{winner}; {sparse} sparse of {len(plan.layers)} layers; {len(plan.steps)} steps; built in {seconds:.0f} s"
    ]
    kind = "2:4" if sparse else "dense"
    return Contestant(impl, setting.precision, kind, replays, "; ".join(notes + unrecorded[:1]))


def keep_plan(setting: Setting, impl: str, session: Session) -> None:
    """Write what `tamis explain` and `tamis profile` would tell of an engine, without its weights."""
    from tamis.engine.encoding import encode  # noqa: PLC0415
    from tamis.runtime import profile  # noqa: PLC0415

    measured = profile(session, setting.inputs, runs=20, warmup_ms=20)
    times = {each.step.name: asdict(each.timing) for each in measured.steps}
    content = {"plan": encode(session.plan), "steps": times}
    assert setting.plans is not None
    setting.plans.mkdir(parents=True, exist_ok=True)
    with gzip.open(setting.plans / f"{setting.case.name}-{impl}.json.gz", "wt") as stream:
        json.dump(content, stream)


# By name, in the order in which they are made: torch.compile is last because it may take minutes.
MAKERS: tuple[tuple[str, Callable[[Setting], Contestant]], ...] = (
    ("torch-eager", eager),
    ("torch-semi-structured", semi_structured),
    ("tamis", tamis_auto),
    ("tamis-dense", tamis_dense),
    ("tamis-libraries", tamis_libraries),
    ("tamis-libraries-dense", tamis_libraries_dense),
    ("torch.compile", compiled),
)
IMPLEMENTATIONS = tuple(name for name, _ in MAKERS)
USUAL = tuple(name for name in IMPLEMENTATIONS if "libraries" not in name)  # the others run where they are asked for
