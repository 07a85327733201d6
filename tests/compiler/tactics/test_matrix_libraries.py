"""What the tactics of cuBLASLt and cuSPARSELt refuse, offer and lower; no GPU and no library is needed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from matrix_layers import CLIP, GELU, GELU_TANH, H200, RELU, RELU6, add, conv, layer_and_arrays, linear
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Elementwise, MatMul, Op
from tamis.compiler.tactics.cublaslt import RANKS, CublasLt
from tamis.compiler.tactics.cusparselt import ALGORITHMS, CusparseLt
from tamis.engine.plan import DeviceInfo
from tamis.formats import TWO_FOUR, CompressedNM, decompress
from tamis.formats.dtype import DType
from tamis.formats.places import unpack_places

ALL = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16))
CPU = replace(H200, kind="cpu")
T4 = replace(H200, name="Tesla T4", architecture="sm_75", features=())

DENSE_REFUSALS: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...], DeviceInfo], ...] = (
    ("runs on CUDA devices only", linear(), (4, 16), (16, 16), CPU),
    ("cuBLASLt is not installed", linear(), (4, 16), (16, 16), replace(H200, libraries={})),
    ("a 3x3 convolution is not a matrix product", conv(pad=1), (1, 16, 8, 8), (16, 16, 3, 3), H200),
    ("strided, padded or grouped", conv(stride=2), (1, 16, 8, 8), (16, 16, 1, 1), H200),
    ("strided, padded or grouped", conv(pad=1), (1, 16, 8, 8), (16, 16, 1, 1), H200),
    ("strided, padded or grouped", conv(groups=2), (1, 16, 8, 8), (16, 8, 1, 1), H200),
    ("an operand is a vector", MatMul(), (16,), (16, 8), H200),
    ("broadcast against each other", MatMul(), (2, 1, 4, 8), (1, 3, 8, 4), H200),
    ("broadcast against each other", MatMul(), (2, 1, 4, 8), (1, 2, 8, 4), H200),
)  # fmt: skip


@pytest.mark.parametrize("reason, op, x, w, device", DENSE_REFUSALS)
def test_cublaslt_refuses(reason: str, op: Op, x: tuple[int, ...], w: tuple[int, ...], device: DeviceInfo) -> None:
    layer, _ = layer_and_arrays(op, x, w)
    assert reason in (CublasLt().refuses(layer, device, ALL) or "nothing")


def test_other_operators_are_refused_by_name() -> None:
    layer, _ = layer_and_arrays(linear(), (4, 16), (16, 16))
    other = replace(layer, node=replace(layer.node, op=Elementwise((RELU,))))
    for tactic in (CublasLt(), CusparseLt()):
        assert tactic.refuses(other, H200, ALL) == "Elementwise is not a linear layer"


SPARSE_REFUSALS: tuple[tuple[str, tuple[int, ...], tuple[int, ...], DeviceInfo, BuildConfig], ...] = (
    ("runs on CUDA devices only", (4, 16), (16, 16), CPU, ALL),
    ("sparsity is off", (4, 16), (16, 16), H200, replace(ALL, sparsity="off")),
    ("compute capability 8.0 or newer; this is sm_75", (4, 16), (16, 16), T4, ALL),
    ("cuSPARSELt is not installed", (4, 16), (16, 16), replace(H200, libraries={"torch": "2.11.0"}), ALL),
    ("allow float16 or bfloat16", (4, 16), (16, 16), H200, BuildConfig(device="cuda", precisions=(DType.TF32,))),
    ("multiples of 16; the weight is 24 x 16", (4, 16), (24, 16), H200, ALL),
    ("multiples of 16; the weight is 16 x 40", (4, 40), (16, 40), H200, ALL),
)  # fmt: skip


@pytest.mark.parametrize("reason, x, w, device, config", SPARSE_REFUSALS)
def test_cusparselt_refuses(
    reason: str, x: tuple[int, ...], w: tuple[int, ...], device: DeviceInfo, config: BuildConfig
) -> None:
    layer, _ = layer_and_arrays(linear(), x, w, sparse=True)
    assert reason in (CusparseLt().refuses(layer, device, config) or "nothing")


def test_cusparselt_refuses_dense_weights_with_the_finding() -> None:
    layer, _ = layer_and_arrays(linear(), (4, 16), (16, 16))
    assert CusparseLt().refuses(layer, H200, ALL) == "the weight is not 2:4"
    noted, _ = layer_and_arrays(linear(), (4, 16), (16, 16), sparse=True)
    assert noted.note is not None
    bad = replace(noted, note=replace(noted.note, pattern="dense", reason="3 groups have more than 2 non-zeros"))
    assert CusparseLt().refuses(bad, H200, ALL) == "3 groups have more than 2 non-zeros"


def test_choices_depend_on_the_features_of_the_device() -> None:
    layer, _ = layer_and_arrays(linear(), (4, 16), (16, 16), sparse=True)
    on_t4 = {c.precision for c in CublasLt().choices(layer, T4, ALL)}
    assert on_t4 == {DType.FLOAT32, DType.FLOAT16}
    dense = list(CublasLt().choices(layer, H200, ALL))
    assert {c.precision for c in dense} == set(ALL.precisions)
    tf32 = [c for c in dense if c.precision is DType.TF32]
    assert [c.parameters["rank"] for c in tf32] == list(range(RANKS))
    assert {f.dtype for c in tf32 for f in (*c.inputs, *c.outputs)} == {DType.FLOAT32}
    sparse = list(CusparseLt().choices(layer, H200, ALL))
    assert {c.sparsity for c in sparse} == {"2:4"}
    for level, most in ((0, 1), (3, 8), (5, 36)):
        sparse = list(CusparseLt().choices(layer, H200, replace(ALL, optimization_level=level)))
        for precision, known in ALGORITHMS.items():
            plain = [c for c in sparse if c.precision is precision and c.parameters["split_k"] == 1]
            assert [c.parameters["algorithm"] for c in plain] == list(known[:most])
    # A number that a GPU has no kernel for would stop the GPU: elsewhere only the few that all have.
    elsewhere = CusparseLt().choices(layer, replace(H200, architecture="sm_89"), replace(ALL, optimization_level=5))
    assert {c.parameters["algorithm"] for c in elsewhere} == set(range(4))
    for choices in (dense, sparse):
        assert len({c.key() for c in choices}) == len(choices)


def test_splitting_k_is_for_few_outputs_and_long_rows() -> None:
    def splits(x: tuple[int, ...], w: tuple[int, ...]) -> set[int]:
        layer, _ = layer_and_arrays(linear(), x, w, sparse=True)
        return {c.parameters["split_k"] for c in CusparseLt().choices(layer, H200, ALL)}

    assert splits((16, 1024), (64, 1024)) == {1, 2, 4}
    assert splits((16, 512), (64, 512)) == {1, 2}
    assert splits((16384, 1024), (1024, 1024)) == {1}


def test_images_are_channels_last() -> None:
    layer, _ = layer_and_arrays(conv(add(3)), (2, 16, 4, 4), (16, 16, 1, 1), sparse=True)
    for tactic in (CublasLt(), CusparseLt()):
        choice = next(iter(tactic.choices(layer, H200, ALL)))
        assert {f.layout for f in (*choice.inputs, *choice.outputs)} == {"channels_last"}
        step = tactic.lower(layer, choice).steps[0]
        assert (step.attributes["rows"], step.attributes["n"], step.attributes["k"]) == (32, 16, 16)
        assert step.inputs == ("x", "r3")


@pytest.mark.usefixtures("no_cuda_compiler")
@pytest.mark.parametrize(
    "epilogue, dense, sparse",
    [
        ((), "none", (False, None)),
        ((RELU,), "relu", (True, None)),
        ((GELU_TANH,), "gelu_tanh", None),
        ((GELU,), None, None),
        ((RELU6,), None, (True, 6.0)),
        ((CLIP,), None, None),
        ((add(3), RELU), "relu", (True, None)),
    ],
)
def test_what_is_fused(epilogue: tuple, dense: str | None, sparse: tuple[bool, float | None] | None) -> None:
    layer, _ = layer_and_arrays(linear(*epilogue), (8, 16), (16, 16), sparse=True)
    for tactic, expected in ((CublasLt(), dense), (CusparseLt(), sparse)):
        choice = next(c for c in tactic.choices(layer, H200, ALL) if c.precision is DType.FLOAT16)
        lowered = tactic.lower(layer, choice)
        a = lowered.steps[0].attributes
        assert json.loads(json.dumps(a)) == a
        assert a["residual"] == (add(3) in epilogue)
        got = a["activation"] if "activation" in a else (a["relu"], a["upper_bound"])
        none = "none" if "activation" in a else (False, None)
        assert got == (none if expected is None else expected)
        assert [s.kernel for s in lowered.steps[1:]] == (["aten.elementwise"] if expected is None else [])


@pytest.mark.usefixtures("no_cuda_compiler")
def test_an_exact_gelu_is_offered_in_the_tanh_form_too_in_16_bits() -> None:
    layer, _ = layer_and_arrays(linear(add(3), GELU, RELU), (8, 16), (16, 16), sparse=True)
    choices = list(CublasLt().choices(layer, H200, ALL))
    approximate = [c for c in choices if c.parameters.get("gelu") == "tanh"]
    assert {c.precision for c in approximate} == {DType.FLOAT16, DType.BFLOAT16}
    assert all(f.dtype in (DType.FLOAT16, DType.BFLOAT16) for c in approximate for f in c.outputs)
    for precision in ALL.precisions:  # exact choices stay, and come first: a tie goes to them
        kinds = ["gelu" in c.parameters for c in choices if c.precision is precision]
        assert not kinds[0] and kinds == sorted(kinds) and kinds.count(False) == RANKS
    call, rest = CublasLt().lower(layer, approximate[0]).steps
    assert (call.attributes["activation"], call.attributes["residual"]) == ("gelu_tanh", True)
    assert [p["kind"] for p in rest.attributes["program"]] == ["relu"]
    call, rest = CublasLt().lower(layer, choices[0]).steps
    assert call.attributes["activation"] == "none"
    assert [p["kind"] for p in rest.attributes["program"]] == ["gelu", "relu"]
    assert not any("gelu" in c.parameters for c in CusparseLt().choices(layer, H200, ALL))
    plain, _ = layer_and_arrays(linear(GELU_TANH), (8, 16), (16, 16))
    assert not any("gelu" in c.parameters for c in CublasLt().choices(plain, H200, ALL))


def test_a_constant_or_smaller_addend_is_no_residual() -> None:
    layer, _ = layer_and_arrays(linear(add(3)), (8, 16), (16, 16))
    narrow = replace(layer, types={**layer.types, "r3": replace(layer.types["r3"], shape=(16,))})
    fixed = replace(layer, constants={**layer.constants, "r3": np.zeros((8, 16), np.float32)})
    for other in (narrow, fixed):
        lowered = CublasLt().lower(other, next(iter(CublasLt().choices(other, H200, ALL))))
        assert not lowered.steps[0].attributes["residual"]
        assert len(lowered.steps) == 2


def test_the_sparse_weight_can_be_read_back() -> None:
    layer, arrays = layer_and_arrays(conv(), (1, 32, 8, 8), (16, 32, 1, 1), sparse=True)
    for choice in CusparseLt().choices(layer, H200, ALL):
        if choice.parameters["algorithm"]:
            continue
        constants = CusparseLt().lower(layer, choice).constants
        kept, places = constants["layer.kept"], constants["layer.places"]
        assert (kept.shape, places.shape) == ((16, 16), (16, 4))
        assert kept.dtype == choice.precision.numpy
        weight = decompress(CompressedNM(kept, unpack_places(places), TWO_FOUR, 32))
        expected = arrays[1].reshape(16, 32).astype(choice.precision.numpy)
        np.testing.assert_array_equal(weight.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("epilogue", [(RELU,), (GELU_TANH,)])
def test_rows_that_are_no_multiple_get_zeros_first(epilogue: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """479 inputs as 480, and 71 as 72, which is none of the library's multiples."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: b"cubin")
    monkeypatch.setattr("tamis.compiler.tactics.aligned_rows.compiles_for", lambda device: True)
    layer, arrays = layer_and_arrays(linear(*epilogue), (40, 479), (64, 479), sparse=True)
    assert CusparseLt().refuses(layer, H200, ALL) is None
    for choice in CusparseLt().choices(layer, H200, ALL):
        assert choice.parameters["aligned"] and choice.parameters["architecture"] == H200.architecture
        lowered = CusparseLt().lower(layer, choice)
        front, product, *_ = lowered.steps
        assert (front.kernel, front.sparsity, product.kernel) == ("cuda.space_to_depth", "dense", "cusparselt.matmul")
        assert front.outputs == product.inputs
        assert lowered.temporaries[front.outputs[0]][0] == (40, 480)
        assert (product.attributes["rows"], product.attributes["n"], product.attributes["k"]) == (40, 64, 480)
        kept, places = (lowered.constants[f"layer.{name}"] for name in ("kept", "places"))
        weight = decompress(CompressedNM(kept, unpack_places(places), TWO_FOUR, 480)).astype(np.float32)
        np.testing.assert_array_equal(weight[:, :479], arrays[1].astype(choice.precision.numpy).astype(np.float32))
        assert not weight[:, 479].any()
    other, _ = layer_and_arrays(linear(), (40, 71), (64, 71), sparse=True)
    assert CusparseLt().refuses(other, H200, ALL) == "outputs and inputs must be multiples of 16; the weight is 64 x 72"
    monkeypatch.setattr("tamis.compiler.tactics.aligned_rows.compiles_for", lambda device: False)
    assert "the weight is 64 x 479" in str(CusparseLt().refuses(layer, H200, ALL))


def test_products_of_activations_may_share_an_operand() -> None:
    def attributes(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, int]:
        layer, _ = layer_and_arrays(MatMul(), a, b)
        assert CublasLt().refuses(layer, H200, ALL) is None
        step = CublasLt().lower(layer, next(iter(CublasLt().choices(layer, H200, ALL)))).steps[0]
        assert step.kernel == "cublaslt.batched"
        return {k: step.attributes[k] for k in ("batch", "rows", "n", "k", "left_stride", "right_stride")}

    assert tuple(attributes((2, 3, 5, 7), (2, 3, 7, 9)).values()) == (6, 5, 9, 7, 35, 63)
    assert tuple(attributes((6, 5, 7), (7, 9)).values()) == (1, 30, 9, 7, 0, 0)
    assert tuple(attributes((5, 7), (6, 7, 9)).values()) == (6, 5, 9, 7, 0, 63)
    assert tuple(attributes((1, 5, 7), (6, 7, 9)).values()) == (6, 5, 9, 7, 0, 63)
