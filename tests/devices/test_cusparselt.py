"""cuSPARSELt without a GPU: the declarations against NVIDIA's headers, and the arithmetic with a library of NumPy."""

from __future__ import annotations

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cusparselt import FakeCusparseLt
from nvidia_header import constants_of, find_headers, kind_of, prototypes_of

from matrix_layers import (
    CLIP,
    GELU_TANH,
    H200,
    RELU,
    RELU6,
    Bound,
    add,
    conv,
    layer_and_arrays,
    linear,
    rounded,
    tolerance,
)
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import Op
from tamis.compiler.tactics.base import Choice, Layer, Lowered
from tamis.compiler.tactics.cusparselt import CusparseLt
from tamis.devices import tensors
from tamis.devices.base import BoundShape
from tamis.devices.cuda import cusparselt
from tamis.devices.cuda import cusparselt_library as lt
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats import TWO_FOUR, compress, decompress, magnitude_mask
from tamis.formats.dtype import DType
from tamis.formats.places import pack_places

PRECISIONS = (DType.BFLOAT16, DType.FLOAT16)
PREFIXES = {
    lt.DataType: "CUDA_", lt.ComputeType: "CUSPARSE_COMPUTE_", lt.Operation: "CUSPARSE_OPERATION_",
    lt.Order: "CUSPARSE_ORDER_", lt.Sparsity: "CUSPARSELT_SPARSITY_", lt.MatmulAttribute: "CUSPARSELT_MATMUL_",
    lt.AlgorithmAttribute: "CUSPARSELT_MATMUL_", lt.SplitMode: "CUSPARSELT_", lt.Property: "",
}  # fmt: skip

CASES: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
    ("plain", linear(bias=False), (8, 32), (48, 32)),
    ("bias relu", linear(RELU), (2, 4, 64), (16, 64)),
    ("one row, padded", linear(RELU), (1, 32), (16, 32)),
    ("rows padded, residual", linear(add(3), RELU), (3, 5, 32), (16, 32)),
    ("relu6", linear(RELU6), (16, 16), (16, 16)),
    ("clip follows", linear(CLIP), (16, 16), (16, 16)),
    ("gelu follows", linear(GELU_TANH), (16, 16), (16, 16)),
    ("relu, then a residual", linear(RELU, add(3)), (8, 32), (16, 32)),
    ("image", conv(RELU), (2, 16, 4, 4), (32, 16, 1, 1)),
    ("7x7 image, padded", conv(add(3), RELU6), (1, 32, 7, 7), (16, 32, 1, 1)),
    ("one pixel, padded", conv(bias=False), (3, 16, 1, 1), (32, 16, 1, 1)),
    ("k can be split", linear(), (8, 1024), (16, 1024)),
)  # fmt: skip


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeCusparseLt:
    fake = FakeCusparseLt()
    context = cusparselt.Context(fake, lt.Opaque())
    monkeypatch.setattr(cusparselt, "context", lambda index: context)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    return fake


def result_of(lowered: Lowered, choice: Choice, layer: Layer, values: dict[str, np.ndarray]) -> np.ndarray:
    bound = Bound(lowered, choice, layer, values, cusparselt.bind)
    bound.run()
    return bound.result()


@pytest.mark.usefixtures("no_cuda_compiler")
@pytest.mark.parametrize("name, op, x, w", CASES, ids=[case[0] for case in CASES])
def test_every_choice_computes_the_layer(
    library: FakeCusparseLt, name: str, op: Op, x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    layer, arrays = layer_and_arrays(op, x, w, sparse=True)
    tactic, config = CusparseLt(), BuildConfig(device="cuda", precisions=PRECISIONS)
    assert tactic.refuses(layer, H200, config) is None
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    choices = list(tactic.choices(layer, H200, config))
    assert {c.precision for c in choices} == set(PRECISIONS)
    assert any(c.parameters["split_k"] > 1 for c in choices) == (name == "k can be split")
    for choice in choices[:3] + choices[-3:]:
        expected = evaluate(op, [rounded(a, choice.precision) for a in arrays])[0]
        got = result_of(tactic.lower(layer, choice), choice, layer, values)
        bound = tolerance(choice.precision) * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound, err_msg=str(choice))
        assert library.used[-1] == tuple(choice.parameters[key] for key in ("algorithm", "split_k", "split_k_mode"))
        assert library.streams[-1] == 77
    gc.collect()
    assert library.alive == 0, "structures are freed with their step"


def test_an_algorithm_that_does_not_exist_is_an_error(library: FakeCusparseLt) -> None:
    step, constants, x, y = _plain_step(algorithm=36)
    with pytest.raises(DeviceError, match=r"layer 'fc': algorithm 36: cuSPARSELt offers only 36 algorithms"):
        cusparselt.bind(step, constants, [x], [y], Workspace(torch.device("cpu")))
    gc.collect()
    assert library.alive == 0


def test_what_the_library_says_reaches_the_user(library: FakeCusparseLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cusparseLtMatmulPlanInit", lambda *_: 10)
    step, constants, x, y = _plain_step(algorithm=0)
    workspace = Workspace(torch.device("cpu"))
    with pytest.raises(DeviceError, match=r"layer 'fc': cuSPARSELt cannot run MatmulPlanInit: status 10"):
        cusparselt.bind(step, constants, [x], [y], workspace)
    with pytest.raises(DeviceError, match="given memory"):
        cusparselt.bind(step, constants, [x], [BoundShape(1, y.shape, y.format)], workspace)


def test_steps_share_the_scratch_memory_that_their_plans_need(library: FakeCusparseLt) -> None:
    workspace, half = Workspace(torch.device("cpu")), torch.float16
    slots, held = [torch.ones(8, 16, dtype=half), torch.zeros(8, 16, dtype=half)], []
    for split_k in (1, 3, 2, 5):
        step, constants, x, y = _plain_step(algorithm=0, split_k=split_k)
        runner = cusparselt.bind(step, constants, [x], [y], workspace)
        held.append(workspace.reserve(0))
        runner(slots)
    assert [block.numel() for block in held] == [0, 384, 384, 768]
    assert library.workspaces == [block.data_ptr() for block in held]


def test_a_step_keeps_the_scratch_memory_that_it_was_given(library: FakeCusparseLt) -> None:
    workspace = Workspace(torch.device("cpu"))
    step, constants, x, y = _plain_step(algorithm=0, split_k=2)
    runner = cusparselt.bind(step, constants, [x], [y], workspace)
    block = weakref.ref(workspace.reserve(0))
    workspace.reserve(1 << 20)
    gc.collect()
    assert block() is not None
    runner([torch.ones(8, 16, dtype=torch.float16), torch.zeros(8, 16, dtype=torch.float16)])
    assert library.workspaces == [block().data_ptr()]
    del runner
    gc.collect()
    assert block() is None


def _plain_step(algorithm: int, split_k: int = 1) -> tuple[Step, dict[str, torch.Tensor], BoundShape, BoundShape]:
    attributes = {
        "rows": 8, "n": 16, "k": 16, "relu": False, "upper_bound": None, "residual": False, "algorithm": algorithm,
        "split_k": split_k, "split_k_mode": 0,
    }  # fmt: skip
    step = Step("fc", "cusparselt.matmul", ("x",), ("y",), ("kept", "places"), attributes)
    constants = {
        "kept": torch.ones(16, 8, dtype=torch.float16),
        "places": torch.full((16, 2), 0b1101_0100, dtype=torch.uint8),
    }
    half = Format(DType.FLOAT16)
    return step, constants, BoundShape(0, (8, 16), half), BoundShape(1, (8, 16), half, True)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_expanding_gives_the_weight_back(dtype: DType) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((16, 64), dtype=np.float32)
    weight *= magnitude_mask(weight, TWO_FOUR)
    weight[0], weight[1, ::4] = 0.0, 0.0  # an empty row, and groups of one value
    weight[2, :4] = (0.0, np.inf, 0.0, -1e-4)
    compressed = compress(weight.astype(dtype.numpy), TWO_FOUR)
    places = tensors.upload(pack_places(compressed.indices))
    got = tensors.download(cusparselt.expand(tensors.upload(compressed.values), places))
    np.testing.assert_array_equal(got.astype(np.float32), decompress(compressed).astype(np.float32))
    np.testing.assert_array_equal(got.astype(np.float32), weight.astype(dtype.numpy).astype(np.float32))


@pytest.mark.parametrize("enumeration", PREFIXES, ids=lambda e: e.__name__)
def test_constants_are_those_of_every_header(enumeration: type) -> None:
    headers = find_headers("cusparseLt.h")
    if not headers:
        pytest.skip("cuSPARSELt's headers are not installed")
    shared = [find_headers(name) for name in ("cusparse.h", "cusparseLt_cusparse_stub.h", "library_types.h")]
    for header in headers:
        known = constants_of(header)
        for others in shared:
            for other in others:
                known |= constants_of(other)
        for member in enumeration:
            name = PREFIXES[enumeration] + member.name.removeprefix("C_").removeprefix("S_")
            if name not in known and not name.startswith("CUSPARSELT_"):
                pytest.skip(f"the header with {name} is not installed")
            assert known[name] == member.value, (header, member)


def test_signatures_are_those_of_every_header() -> None:
    headers = find_headers("cusparseLt.h")
    if not headers:
        pytest.skip("cuSPARSELt's headers are not installed")
    passed = {
        "pointer": (ctypes.c_void_p,),
        "64-bit": (ctypes.c_size_t, ctypes.c_int64),
        "32-bit": (ctypes.c_int, ctypes.c_uint32),
    }
    for header in headers:
        prototypes = prototypes_of(header)
        for name, _, declared in lt.SIGNATURES:
            arguments = prototypes[name]
            assert len(arguments) == len(declared), name
            for text, kind in zip(arguments, declared, strict=True):
                assert kind in passed[kind_of(text)], (name, text, kind)
        assert header.read_text().count("alignas(16) uint8_t data[512]") == 5, "opaque structures"


def test_the_library_tells_its_version() -> None:
    try:
        found = lt.newest()
    except MissingLibrary:
        pytest.skip("cuSPARSELt is not installed")
    assert lt.OLDEST <= found.version < (1, 0, 0)
    assert lt.version() == ".".join(map(str, found.version))
    assert lt.load().cusparseLtGetErrorString(10) == b"operation not supported"


def test_the_newest_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"/torch/lib": (0, 8, 0), "/wheel/lib": (0, 10, 0), "/same/lib": (0, 10, 0), "broken": None}

    def open_library(path: str, signatures: object) -> str:
        if versions[path] is None:
            raise OSError("cannot open shared object file")
        return path

    monkeypatch.setattr(lt, "candidates", lambda names: list(versions))
    monkeypatch.setattr(lt, "open_library", open_library)
    monkeypatch.setattr(lt, "_version_of", versions.__getitem__)
    assert lt.newest.__wrapped__() == lt.Found("/wheel/lib", (0, 10, 0))
    versions.update({"/wheel/lib": (0, 7, 1), "/same/lib": (0, 7, 1), "/torch/lib": (0, 7, 1)})
    with pytest.raises(
        MissingLibrary, match=r"cuSPARSELt 0\.7\.1 is older than 0\.8\.0.*pip|cuSPARSELt 0\.7\.1 is older"
    ):
        lt.newest.__wrapped__()
    monkeypatch.setattr(lt, "candidates", lambda names: ["broken"])
    with pytest.raises(MissingLibrary, match=r"not found \(cannot open shared object file\)"):
        lt.newest.__wrapped__()


def test_advice_is_given_where_the_library_is_slow() -> None:
    text = lt.advice("0.8.0", "sm_90")
    assert text is not None and "0.8.1" in text and "\n" not in text
    assert lt.advice("0.8.1", "sm_90") is None
    assert lt.advice("0.10.0", "sm_90") is None
    assert lt.advice("0.8.0", "sm_80") is None
