"""build(): from ONNX to an engine that agrees with ONNX Runtime, repeatable, honest about what it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler import BuildConfig, build
from tamis.compiler.tactics.onednn import BFLOAT16_NEEDS
from tamis.devices.cpu import CpuDevice
from tamis.engine.file import save
from tamis.errors import ConfigError, InputError, InvalidModel
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType
from tamis.runtime.session import Session

FP32_AND_BF16 = (DType.FLOAT32, DType.BFLOAT16)


def convolutional_model(*, sparse: bool = True) -> onnx.ModelProto:
    """Conv 3x3, Conv 3x3 with a residual, 1x1, pooling, flatten and two linear layers."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        array = generator.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        if sparse and shape[1] % 4 == 0:
            array *= magnitude_mask(array, TWO_FOUR, 1)
        return numpy_helper.from_array(array.astype(np.float32), name)

    def bias(name: str, n: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.standard_normal(n).astype(np.float32), name)

    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a0"], **same),
        helper.make_node("Relu", ["a0"], ["a1"]),
        helper.make_node("Conv", ["a1", "w1", "b1"], ["a2"], **same),
        helper.make_node("Add", ["a2", "a1"], ["a3"]),
        helper.make_node("Relu", ["a3"], ["a4"]),
        helper.make_node("Conv", ["a4", "w2", "b2"], ["a5"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["a5"], ["a6"]),
        helper.make_node("Flatten", ["a6"], ["a7"]),
        helper.make_node("Gemm", ["a7", "w3", "b3"], ["a8"], transB=1),
        helper.make_node("Relu", ["a8"], ["a9"]),
        helper.make_node("Gemm", ["a9", "w4", "b4"], ["y"], transB=1),
    ]
    initializers = [
        weight("w0", 32, 3, 3, 3), weight("w1", 32, 32, 3, 3), weight("w2", 64, 32, 1, 1), weight("w3", 128, 64),
        weight("w4", 10, 128), *(bias(f"b{i}", n) for i, n in enumerate((32, 32, 64, 128, 10))),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 10])
    graph = helper.make_graph(nodes, "small", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}


def by_onnxruntime(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds())[0])


@pytest.mark.parametrize("exclude", [(), ("openvino",), ("openvino", "tamis"), ("openvino", "tamis", "onednn")])
def test_agrees_with_onnxruntime_whatever_tactics_may_race(exclude: tuple[str, ...]) -> None:
    model = convolutional_model()
    engine = build(model, BuildConfig(repetitions=3, exclude_tactics=exclude, verify=True))
    result = Session(engine, poison=True).run(feeds())["y"]
    np.testing.assert_allclose(result, by_onnxruntime(model), rtol=1e-4, atol=1e-5)
    assert not any(step.kernel.startswith(tuple(f"{name}." for name in exclude)) for step in engine.plan.steps)


def test_bfloat16_is_close_and_recorded() -> None:
    model = convolutional_model()
    engine = build(model, BuildConfig(repetitions=3, precisions=FP32_AND_BF16, verify=True))
    result, expected = Session(engine, poison=True).run(feeds())["y"], by_onnxruntime(model)
    cosine = float((result * expected).sum() / np.linalg.norm(result) / np.linalg.norm(expected))
    assert cosine > 0.999
    assert all(e.accuracy is not None and e.accuracy.cosine > 0.999 for e in engine.plan.engines)


def test_a_second_build_measures_nothing_and_gives_the_same_file(tmp_path: Path) -> None:
    config = BuildConfig(repetitions=3, precisions=FP32_AND_BF16, timing_cache=tmp_path / "times.json")
    model = convolutional_model()
    save(build(model, config), tmp_path / "first.tamis")
    written = (tmp_path / "times.json").read_bytes()
    save(build(model, config), tmp_path / "second.tamis")
    assert (tmp_path / "first.tamis").read_bytes() == (tmp_path / "second.tamis").read_bytes()
    assert (tmp_path / "times.json").read_bytes() == written


def test_every_layer_has_a_record_that_explains_it() -> None:
    engine = build(convolutional_model(), BuildConfig(repetitions=3))
    layers = {layer.name: layer for layer in engine.plan.layers}
    assert sum(layer.eligible for layer in layers.values()) == 4
    stem = next(layer for layer in layers.values() if "[2,3,16,16]" in layer.description)
    assert not stem.eligible
    assert "multiple of 4" in stem.ineligible_reason
    for layer in layers.values():
        assert layer.why
        assert all(c.reason for c in layer.candidates if c.status != "won")
        assert sum(c.status == "won" for c in layer.candidates) <= 1
    assert sum(record.chosen for record in engine.plan.engines) == 1


def test_sparsity_off_never_runs_sparse() -> None:
    engine = build(convolutional_model(), BuildConfig(repetitions=3, sparsity="off"))
    assert all(layer.chosen_sparsity == "dense" for layer in engine.plan.layers)
    sparse = [c for layer in engine.plan.layers for c in layer.candidates if c.sparsity == "2:4"]
    assert sparse and {c.status for c in sparse} == {"refused"}


def test_force_prunes_what_can_be_pruned_and_marks_the_engine() -> None:
    engine = build(convolutional_model(sparse=False), BuildConfig(repetitions=3, sparsity="force"))
    assert not engine.plan.usable_for_accuracy
    assert sum(layer.eligible for layer in engine.plan.layers) == 4
    plain = build(convolutional_model(sparse=False), BuildConfig(repetitions=3))
    assert plain.plan.usable_for_accuracy
    assert not any(layer.eligible for layer in plain.plan.layers)


def test_the_guard_moves_layers_to_float32_when_asked_for_more_than_bfloat16_gives() -> None:
    config = BuildConfig(repetitions=3, precisions=FP32_AND_BF16, accuracy_cosine=0.99999999)
    engine = build(convolutional_model(), config)
    assert all(step.precision == DType.FLOAT32 for step in engine.plan.steps)


def test_a_layer_runs_in_the_precision_that_the_user_wants() -> None:
    if not BFLOAT16_NEEDS.issubset(CpuDevice().info().features):
        pytest.skip("this processor does not compute in bfloat16")
    model = convolutional_model()
    names = [record.name for record in build(model, BuildConfig()).plan.layers]
    wished = next(name for name in names if "conv" in name.lower())
    engine = build(model, BuildConfig(layer_precisions=((wished, (DType.BFLOAT16,)),)))
    chosen = {record.name: record.chosen_precision for record in engine.plan.layers}
    assert chosen.pop(wished) == DType.BFLOAT16
    assert set(chosen.values()) == {DType.FLOAT32}
    config = BuildConfig(precisions=FP32_AND_BF16, layer_precisions=(("*", (DType.FLOAT32,)),))
    engine = build(model, config)
    assert {record.chosen_precision for record in engine.plan.layers} == {DType.FLOAT32}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"precisions": (DType.FLOAT16,)}, "float16"),
        ({"layer_precisions": (("a", (DType.TF32,)),)}, "tf32"),
        ({"precisions": ("float31",)}, "float31"),
        ({"device": "tpu"}, "tpu"),
        ({"optimization_level": 6}, "the level is 6"),
        ({"optimization_level": "3"}, "optimization_level is '3', not a whole number"),
        ({"threads": 1.5}, "threads is 1.5, not a whole number"),
        ({"budget_seconds": "9"}, "budget_seconds is '9', not a number"),
        ({"shapes": {"x": "1x3"}}, "the shape of x is '1x3'"),
        ({"samples": 3}, "samples is 3, not a mapping"),
        ({"budget_seconds": float("nan")}, "the budget is nan"),
        ({"seed": -1}, "the seed is -1"),
        ({"accuracy_relative": float("nan")}, "accuracy_relative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        BuildConfig(**options)


def test_precisions_have_short_names() -> None:
    config = BuildConfig(precisions="bf16", layer_precisions=(("a", ("fp32",)),))  # type: ignore[arg-type]
    assert config.precisions == FP32_AND_BF16
    assert config.layer_precisions == (("a", (DType.FLOAT32,)),)


def test_an_output_may_be_a_reshape_of_another_value() -> None:
    generator = np.random.default_rng(2)
    weights = [numpy_helper.from_array(generator.standard_normal((16, 16)).astype(np.float32), n) for n in ("v", "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    shapes = {"c": [2, 16], "y": [4, 8], "z": [2, 16]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])
    initializers = [*weights, numpy_helper.from_array(np.array([4, 8]), "shape")]
    graph = helper.make_graph(nodes, "reshaped", [x], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = {"x": generator.standard_normal((2, 16)).astype(np.float32)}
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip(shapes, runtime.run(None, given), strict=True))
    # OpenVINO and chains would take in the reshape.
    engine = build(model, BuildConfig(exclude_tactics=("openvino", "tamis")))
    assert {buffer.name: buffer.place for buffer in engine.plan.buffers}["y"] == "alias"
    results = Session(engine).run(given)
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-6)


def test_levels_change_how_much_is_measured() -> None:
    low, high = BuildConfig(optimization_level=0), BuildConfig(optimization_level=5)
    assert (low.turns, low.algorithms) < (BuildConfig().turns, BuildConfig().algorithms) < (high.turns, high.algorithms)
    assert BuildConfig(repetitions=7).turns == 7
    assert BuildConfig(device="cuda", precisions=(DType.FLOAT16,)).precisions == (DType.FLOAT32, DType.FLOAT16)


def test_samples_are_used_and_checked() -> None:
    with pytest.raises(InputError, match="not inputs"):
        build(convolutional_model(), BuildConfig(repetitions=3, samples={"z": np.zeros(3, np.float32)}))
    with pytest.raises(InputError, match="shape"):
        build(convolutional_model(), BuildConfig(repetitions=3, samples={"x": np.zeros(3, np.float32)}))


def test_samples_that_are_not_numbers_are_one_clear_error() -> None:
    sample = feeds()["x"].copy()
    sample[0, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="'x' holds NaN"):
        build(convolutional_model(), BuildConfig(repetitions=3, samples={"x": sample}))


def test_zero_budget_still_builds_a_right_engine() -> None:
    model = convolutional_model()
    engine = build(model, BuildConfig(repetitions=3, budget_seconds=0.0, exclude_tactics=("openvino",)))
    np.testing.assert_allclose(Session(engine).run(feeds())["y"], by_onnxruntime(model), rtol=1e-4, atol=1e-5)
    skipped = [c for layer in engine.plan.layers for c in layer.candidates if "budget" in c.reason]
    assert skipped


def test_half_precision_ports_are_not_widened_on_the_way() -> None:
    """A model with float16 inputs and outputs around a bfloat16 layer needs no float32 value in between."""
    generator = np.random.default_rng(3)
    weight = numpy_helper.from_array(generator.standard_normal((64, 64)).astype(np.float16), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4, 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "half", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = BuildConfig(precisions=FP32_AND_BF16, layer_precisions=(("*", (DType.BFLOAT16,)),))
    engine = build(model, config)
    assert {record.chosen_precision for record in engine.plan.layers} == {DType.BFLOAT16}
    assert DType.FLOAT32 not in {buffer.format.dtype for buffer in engine.plan.buffers}
    value = generator.standard_normal((4, 64)).astype(np.float16)
    result = Session(engine).run({"x": value})["y"]
    expected = value.astype(np.float64) @ numpy_helper.to_array(weight).astype(np.float64)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result.astype(np.float64), expected, rtol=0.05, atol=0.5)


def test_texts_for_paths_and_a_single_tactic(tmp_path: Path) -> None:
    config = BuildConfig(timing_cache=str(tmp_path / "t.json"), dump="graphs", exclude_tactics="openvino")  # type: ignore[arg-type]
    assert config.timing_cache == tmp_path / "t.json" and config.dump == Path("graphs")
    assert config.exclude_tactics == ("openvino",)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), 3, None])
def test_a_model_that_is_no_onnx_model(model: object) -> None:
    with pytest.raises(InvalidModel, match=f"the model is a {type(model).__name__}. Give the path .*export_onnx"):
        build(model, BuildConfig())  # type: ignore[arg-type]
