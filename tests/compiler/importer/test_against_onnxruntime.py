"""Small models for several opsets, compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.verify import verify

OPSETS = (9, 11, 13, 17, 20, 22)
RANDOM = np.random.default_rng(0)


def node(op_type: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """A node; names are given in one string each, ``-`` leaving an input out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), domain=domain, **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    opset: int,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    domains = {"": opset, **{n.domain: 1 for n in nodes if n.domain}}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()])
    model.ir_version = 8 if opset < 21 else 10
    return onnx.shape_inference.infer_shapes(model) if len(domains) == 1 else model


def check(model: onnx.ModelProto, inputs: dict[str, np.ndarray], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for output in model.graph.output:
        if not output.type.tensor_type.elem_type:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    expected = session.run(None, inputs)
    graph = import_onnx(model)
    verify(graph)
    got, exact = run(graph, inputs), run(graph, inputs, exact=True)
    for value, name in zip(expected, graph.outputs, strict=True):
        assert got[name].shape == value.shape and got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=atol)
        np.testing.assert_allclose(exact[name], value, rtol=rtol, atol=atol)


def f32(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("opset", OPSETS)
def test_convolutional_network(opset: int) -> None:
    constants = {
        "w1": f32(8, 3, 3, 3),
        "b1": f32(8),
        "w2": f32(8, 1, 3, 3),
        "scale": f32(8),
        "shift": f32(8),
        "mean": f32(8),
        "variance": np.abs(f32(8)) + 0.5,
        "fc": f32(10, 8),
        "fcb": f32(10),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", group=8, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("BatchNormalization", "c2 scale shift mean variance", "n2"),
        node("MaxPool", "n2", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("AveragePool", "p", "a", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
        node("GlobalAveragePool", "a", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f fc fcb", "h", transB=1, alpha=0.5, beta=2.0),
        node("Softmax", "h", "y"),
    ]
    inputs = {"x": f32(2, 3, 21, 19)}
    check(model_of(nodes, inputs, constants, opset), inputs)


@pytest.mark.parametrize("opset", OPSETS)
def test_shape_chain_disappears(opset: int) -> None:
    """The Shape/Gather/Concat/Reshape chains of old exporters become one Reshape."""
    constants = {"zero": np.asarray(0), "rest": np.asarray([-1])}
    if opset < 13:
        unsqueeze = [node("Unsqueeze", "n", "n1", axes=[0])]
    else:
        constants["axes"] = np.asarray([0])
        unsqueeze = [node("Unsqueeze", "n axes", "n1")]
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n", axis=0),
        *unsqueeze,
        node("Concat", "n1 rest", "shape", axis=0),
        node("Reshape", "x shape", "y"),
    ]
    inputs = {"x": f32(2, 3, 4)}
    model = model_of(nodes, inputs, constants, opset)
    check(model, inputs)
    assert [type(layer.op).__name__ for layer in import_onnx(model).nodes] == ["Reshape"]


@pytest.mark.parametrize("opset", OPSETS)
def test_attention_block(opset: int) -> None:
    """Decomposed multi-head attention with a layer normalisation spelled out."""
    constants = {
        "wq": f32(16, 16),
        "wk": f32(16, 16),
        "heads": np.asarray([2, 5, 4, 4]),
        "back": np.asarray([2, 5, 16]),
        "scale": np.asarray(0.5, np.float32),
        "two": np.asarray(2.0, np.float32),
        "epsilon": np.asarray(1e-5, np.float32),
    }
    nodes = [node("ReduceMean", "x", "mean", axes=[-1])] if opset < 18 else []
    if opset >= 18:
        constants["last"] = np.asarray([-1])
        nodes = [node("ReduceMean", "x last", "mean")]
    nodes += [
        node("Sub", "x mean", "d"),
        node("Pow", "d two", "d2"),
        node("ReduceMean", "d2 last" if opset >= 18 else "d2", "v", **({} if opset >= 18 else {"axes": [-1]})),
        node("Add", "v epsilon", "ve"),
        node("Sqrt", "ve", "s"),
        node("Div", "d s", "n"),
        node("MatMul", "n wq", "q2"),
        node("MatMul", "n wk", "k2"),
        node("Reshape", "q2 heads", "q3"),
        node("Reshape", "k2 heads", "k3"),
        node("Transpose", "q3", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "k3", "k", perm=[0, 2, 3, 1]),
        node("MatMul", "q k", "scores"),
        node("Mul", "scores scale", "scaled"),
        node("Softmax", "scaled", "p", axis=3),
        node("MatMul", "p q", "o"),
        node("Transpose", "o", "o2", perm=[0, 2, 1, 3]),
        node("Reshape", "o2 back", "o3"),
        node("Add", "o3 x", "y"),
    ]
    inputs = {"x": f32(2, 5, 16)}
    check(model_of(nodes, inputs, constants, opset), inputs)


@pytest.mark.parametrize("opset", OPSETS)
def test_softmax_over_the_first_axes(opset: int) -> None:
    """Before opset 13 Softmax flattens from its axis on; afterwards it looks along that axis alone."""
    nodes = [
        node("Softmax", "x", "a", axis=1),
        node("LogSoftmax", "a", "b", axis=2),
        node("Softmax", "b", "y"),
    ]
    inputs = {"x": f32(2, 3, 4, 5)}
    check(model_of(nodes, inputs, {}, opset), inputs)


@pytest.mark.parametrize("opset", OPSETS)
def test_slices_pads_clips_and_splits(opset: int) -> None:
    constants: dict[str, np.ndarray] = {}
    if opset < 10:
        nodes = [node("Slice", "x", "s", starts=[1, -4], ends=[9999, -1], axes=[1, 2])]
    else:
        names = {"starts": [1, -1], "ends": [9999, -9999], "axes": [1, 2], "steps": [2, -1]}
        constants |= {name: np.asarray(values) for name, values in names.items()}
        nodes = [node("Slice", "x starts ends axes steps", "s")]
    if opset < 11:
        nodes += [
            node("Pad", "s", "p", pads=[0, 1, 0, 0, 0, 2], value=0.5),
            node("Clip", "p", "c", min=-0.5, max=0.75),
        ]
    else:
        constants |= {"pads": np.asarray([0, 1, 0, 0, 0, 2]), "value": np.asarray(0.5, np.float32)}
        constants |= {"low": np.asarray(-0.5, np.float32), "high": np.asarray(0.75, np.float32)}
        nodes += [node("Pad", "s pads value", "p"), node("Clip", "p low high", "c")]
    if opset < 13:
        nodes += [node("Split", "c", "a b", axis=0, split=[1, 2])]
    else:
        constants["sizes"] = np.asarray([1, 2])
        nodes += [node("Split", "c sizes", "a b", axis=0)]
    inputs = {"x": f32(3, 4, 6)}
    check(model_of([*nodes, node("Mul", "a b", "y")], inputs, constants, opset), inputs)


@pytest.mark.parametrize("opset", (9, 10))
def test_old_upsampling(opset: int) -> None:
    constants = {"scales": np.asarray([1, 1, 2, 3], np.float32)}
    inputs = {"x": f32(1, 2, 3, 4)}
    for mode in ("nearest", "linear"):
        nodes = [node("Upsample" if opset == 9 else "Resize", "x scales", "y", mode=mode)]
        check(model_of(nodes, inputs, constants, opset), inputs)


RESIZE_CASES = [
    (mode, coordinates, nearest)
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for mode, nearest in (
        ("nearest", "round_prefer_floor"),
        ("nearest", "floor"),
        ("nearest", "ceil"),
        ("nearest", "round_prefer_ceil"),
        ("linear", ""),
        ("cubic", ""),
    )
]


@pytest.mark.parametrize(("mode", "coordinates", "nearest"), RESIZE_CASES)
@pytest.mark.parametrize("opset", (11, 13, 18, 19))
def test_resize(mode: str, coordinates: str, nearest: str, opset: int) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if nearest:
        attributes["nearest_mode"] = nearest
    inputs = {"x": f32(1, 2, 7, 5)}
    roi = {"roi": np.zeros(0, np.float32)}
    for scales in ((1, 1, 2, 3), (1, 1, 0.6, 1.7), (1, 1, 1 / 3, 0.5)):
        constants = roi | {"scales": np.asarray(scales, np.float32)}
        check(model_of([node("Resize", "x roi scales", "y", **attributes)], inputs, constants, opset), inputs)
    for sizes in ((1, 2, 14, 3), (1, 2, 5, 1)):
        constants = roi | {"none": np.zeros(0, np.float32), "sizes": np.asarray(sizes)}
        model = model_of([node("Resize", "x roi none sizes", "y", **attributes)], inputs, constants, opset)
        check(model, inputs)


@pytest.mark.parametrize("case", range(40))
def test_random_convolutions(case: int) -> None:
    """Random geometry of Conv and ConvTranspose in 1 to 3 dimensions, groups and asymmetric pads."""
    random = np.random.default_rng(case)
    rank, groups = int(random.integers(1, 4)), int(random.integers(1, 4))
    inside, outside = groups * int(random.integers(1, 4)), groups * int(random.integers(1, 4))
    kernel = random.integers(1, 4, rank).tolist()
    transposed = case % 2 == 1
    strides, dilations = random.integers(1, 4, rank).tolist(), random.integers(1, 3, rank).tolist()
    attributes: dict[str, object] = {"group": groups, "strides": strides, "dilations": dilations}
    mode = ("pads", "SAME_UPPER", "SAME_LOWER", "VALID")[int(random.integers(0, 4))]
    if mode == "pads":
        attributes["pads"] = random.integers(0, 2, 2 * rank).tolist()
    else:
        attributes["auto_pad"] = mode
        # ONNX Runtime leaves ONNX's definition where a transposed kernel is smaller than its stride.
        attributes["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
        attributes["dilations"] = [1] * rank if mode != "VALID" or transposed else dilations
    if transposed and mode == "pads":
        attributes["output_padding"] = [int(random.integers(0, stride)) for stride in strides]
    shape = (inside, outside // groups, *kernel) if transposed else (outside, inside // groups, *kernel)
    constants = {"w": f32(*shape), "b": f32(outside)}
    inputs = {"x": f32(2, inside, *random.integers(7, 10, rank).tolist())}
    kind = "ConvTranspose" if transposed else "Conv"
    check(model_of([node(kind, "x w b", "y", **attributes)], inputs, constants, 17), inputs)


@pytest.mark.parametrize("case", range(40))
def test_random_pooling(case: int) -> None:
    """Random windows with ceil_mode, asymmetric pads and dilations."""
    random = np.random.default_rng(100 + case)
    rank = int(random.integers(1, 4))
    kernel = random.integers(1, 4, rank).tolist()
    attributes: dict[str, object] = {
        "kernel_shape": kernel,
        "strides": random.integers(1, 4, rank).tolist(),
        "ceil_mode": int(random.integers(0, 2)),
        "pads": [int(random.integers(0, size)) for size in kernel * 2],
    }
    kind = "AveragePool" if case % 2 else "MaxPool"
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(random.integers(0, 2))
    else:
        attributes["dilations"] = random.integers(1, 3, rank).tolist()
    inputs = {"x": f32(1, 2, *random.integers(7, 11, rank).tolist())}
    check(model_of([node(kind, "x", "y", **attributes)], inputs, {}, 22), inputs)


def test_linear_layers_from_every_direction() -> None:
    """A constant matrix on the right is a weight; on the left, batched or transposed it is handled too."""
    constants = {"w": f32(6, 5), "left": f32(3, 4), "batch": f32(2, 5, 3), "one": f32(1, 6, 5)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "left a", "b"),
        node("MatMul", "b batch", "c"),
        node("MatMul", "x one", "d"),
        node("MatMul", "left d", "e"),
        node("ReduceMax", "e", "f", keepdims=0, axes=[-1]),
        node("ReduceMax", "c", "g", keepdims=0, axes=[-1]),
        node("Add", "f g", "y"),
    ]
    inputs = {"x": f32(2, 4, 6)}
    model = model_of(nodes, inputs, constants, 17)
    check(model, inputs)
    kinds = [type(layer.op).__name__ for layer in import_onnx(model).nodes]
    assert kinds.count("Linear") == 2 and kinds.count("MatMul") == 3


def test_quantised_weights_fold_and_activations_stay() -> None:
    weight = RANDOM.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
    weight[:, 1::2] = 0
    constants = {
        "w": weight,
        "ws": np.abs(f32(8)) / 64,
        "wz": np.zeros(8, np.int8),
        "s": np.asarray(0.05, np.float32),
        "z": np.asarray(3, np.int8),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "wd", axis=0),
        node("Conv", "d wd", "y"),
    ]
    inputs = {"x": f32(1, 4, 6, 6)}
    model = model_of(nodes, inputs, constants, 17)
    check(model, inputs)
    graph = import_onnx(model)
    assert [type(layer.op).__name__ for layer in graph.nodes] == ["Quantize", "Dequantize", "Conv"]
    folded = graph.constants[graph.nodes[-1].inputs[1]]
    assert folded.dtype == np.float32 and not folded[:, 1::2].any()


def test_operators_on_integers_of_a_quantised_model() -> None:
    random = np.random.default_rng(1)
    constants = {
        "ws": np.asarray([0.02, 0.03, 0.01], np.float32),
        "wz": np.zeros(3, np.int8),
        # Two products fit into 16 bits: ONNX Runtime saturates there on processors without VNNI.
        "w": random.integers(-60, 60, (3, 2, 3, 3)).astype(np.int8),
        "b": random.integers(-500, 500, 3).astype(np.int32),
        "xs": np.asarray(0.03, np.float32),
        "xz": np.asarray(120, np.uint8),
        "ys": np.asarray(0.1, np.float32),
        "yz": np.asarray(110, np.uint8),
    }
    nodes = [
        node("QLinearConv", "x xs xz w ws wz ys yz b", "q", pads=[1, 1, 1, 1]),
        node("DequantizeLinear", "q ys yz", "y"),
    ]
    inputs = {"x": random.integers(0, 256, (1, 2, 5, 5)).astype(np.uint8)}
    check(model_of(nodes, inputs, constants, 17), inputs, atol=0.11)  # one step where a tie rounds the other way
    a, b = (random.integers(0, 255, shape).astype(np.uint8) for shape in ((4, 6), (6, 3)))
    points = {"az": np.asarray(7, np.uint8), "bz": np.asarray([3, 9, 1], np.uint8), "b": b}
    nodes = [node("MatMulInteger", "a b az bz", "i"), node("Cast", "i", "y", to=TensorProto.FLOAT)]
    check(model_of(nodes, {"a": a}, points, 17), {"a": a})


@pytest.mark.parametrize("dtype", (np.float16, np.float64))
def test_other_floats_at_the_border(dtype: type[np.generic]) -> None:
    """Inputs, outputs and constants of other floating-point types; float32 inside."""
    constants = {"w": f32(4, 3).astype(dtype), "b": f32(3).astype(dtype)}
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", "h b", "s"),
        node("Cast", "s", "c", to=TensorProto.FLOAT),
        node("Tanh", "c", "t"),
        node("Cast", "t", "y", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
    ]
    inputs = {"x": f32(2, 4).astype(dtype)}
    model = model_of(nodes, inputs, constants, 17)
    check(model, inputs, rtol=5e-3, atol=1e-3)
    graph = import_onnx(model)
    assert {str(graph.types[n.output].dtype) for n in graph.nodes if n.output != "y"} == {"float32"}
    assert {array.dtype.name for array in graph.constants.values()} == {"float32"}


def test_fused_operators_of_onnx_runtime() -> None:
    domain = "com.microsoft"
    constants = {"g": f32(8), "b": f32(8), "bias": f32(8), "w": f32(8, 8)}
    nodes = [
        node("SkipLayerNormalization", "x skip g b bias", "n _1 _2 sum", domain, epsilon=1e-5),
        node("BiasGelu", "n bias", "h", domain),
        node("FastGelu", "h bias", "f", domain),
        node("QuickGelu", "f", "k", domain, alpha=1.5),
        node("FusedMatMul", "k w", "m", domain, alpha=0.5, transB=1),
        node("Add", "m sum", "y"),
    ]
    inputs = {"x": f32(2, 3, 8), "skip": f32(2, 3, 8)}
    check(model_of(nodes, inputs, constants, 17), inputs)
    constants = {"w": f32(4, 3, 3, 3), "b": f32(4)}
    nodes = [node("FusedConv", "x w b", "y", domain, activation="LeakyRelu", activation_params=[0.2])]
    inputs = {"x": f32(1, 3, 6, 6)}
    check(model_of(nodes, inputs, constants, 17), inputs)
