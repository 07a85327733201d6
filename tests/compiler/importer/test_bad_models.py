"""What a user sees when a model cannot be imported: the type of the error and its one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler.importer import import_onnx
from tamis.errors import ConfigError, InvalidModel, TamisError, UnsupportedModel
from tamis.sparsity import check_file, check_onnx, prune_onnx

FLOAT = TensorProto.FLOAT


def tensor(name: str, shape: list[int | str] | None, element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [tensor("x", [2, 4])] if inputs is None else inputs,
        [tensor("y", None)] if outputs is None else outputs,
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def good() -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="act")])


def fails(kind: type[TamisError], source: object, *parts: str, **options: object) -> str:
    with pytest.raises(TamisError) as caught:
        import_onnx(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert caught.value.__cause__ is None  # no traceback of a library behind it
    return message


# --- files -------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    fails(InvalidModel, tmp_path / "none.onnx", "none.onnx' does not exist", "Give the path")


def test_directory(tmp_path: Path) -> None:
    fails(InvalidModel, str(tmp_path), "is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(good().SerializeToString())
    path.chmod(0)
    fails(InvalidModel, path, "permission denied")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    fails(InvalidModel, path, "is empty", "torch.onnx.export")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"this is a text file, not a model\n" * 20, "not an ONNX model"),
        (b"\x00" * 200, "not an ONNX model"),
        (bytes(range(256)) * 8, "not an ONNX model"),
        (b"PK\x03\x04" + b"\x00" * 60, "a zip archive, perhaps a saved torch model"),
        (pickle.dumps({"w": 1}), "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    fails(InvalidModel, path, part)
    fails(InvalidModel, content, part)


def test_truncated_anywhere() -> None:
    weights = {"w": np.ones((4, 4), np.float32)}
    data = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], constants=weights).SerializeToString()
    import_onnx(data)
    for size in range(len(data)):
        with pytest.raises(InvalidModel) as caught:
            import_onnx(data[:size])
        assert "\n" not in str(caught.value)


def test_garbled_bytes_never_escape_the_error_tree() -> None:
    weights = {"w": np.ones((4, 4), np.float32)}
    data = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], constants=weights).SerializeToString()
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 3):
            broken[place] = int(random.integers(0, 256))
        try:
            import_onnx(bytes(broken))
        except TamisError as error:
            assert "\n" not in str(error)


# --- external data -----------------------------------------------------------------------------------------


def save_external(folder: Path) -> Path:
    weights = {"w": np.arange(400, dtype=np.float32).reshape(4, 100)}
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], constants=weights)
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    graph = import_onnx(save_external(tmp_path))
    (weight,) = graph.constants.values()
    np.testing.assert_array_equal(weight, np.arange(400, dtype=np.float32).reshape(4, 100).T)


def test_external_data_stays_mapped(tmp_path: Path) -> None:
    """A weight that needs no change is not copied out of its file."""
    weights = {"w": np.ones((6, 4), np.float32)}
    model = model_of([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], constants=weights)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    weight = import_onnx(tmp_path / "m.onnx").constants["w"]
    base: object = weight
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_external_file_missing(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    (tmp_path / "m.data").unlink()
    fails(InvalidModel, path, "tensor 'w'", "external file 'm.data'", "Copy that file beside the model")


def test_external_file_truncated(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-8])
    fails(InvalidModel, path, "tensor 'w'", "which has only 1592", "truncated")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", ""])
def test_external_file_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\x00" * 1600)
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    fails(InvalidModel, path, "outside the model's folder")


def test_external_link_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder)
    (folder / "m.data").rename(tmp_path / "moved.data")
    (folder / "m.data").symlink_to(tmp_path / "moved.data")
    fails(InvalidModel, path, "a link to a file outside the model's folder", "Put a copy of the file in its place")


BAD_LOCATIONS = [
    (b"\xff\xfe.bin", r"the external file b'\xff\xfe.bin', which is not UTF-8"),
    (b"\xed\xa0\x80", "which is not UTF-8"),
    (b"a\0b", "which holds a null character"),
    (b"x" * 5000, "cannot be looked for: File name too long"),
    (b"circle", "cannot be looked for"),
    (b"..", "outside the model's folder"),
    (b"folder", "which is not in"),
    (b"absent", "which is not in"),
]


@pytest.mark.parametrize(("location", "said"), BAD_LOCATIONS)
def test_names_of_external_files_that_are_none(location: bytes, said: str, tmp_path: Path) -> None:
    path = save_external(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "Q" * len(location)
    path.write_bytes(model.SerializeToString().replace(b"Q" * len(location), location))
    before = set(tmp_path.iterdir())
    fails(InvalidModel, path, "tensor 'w'", said)
    for command in (check_onnx, check_file, lambda path: prune_onnx(path, tmp_path / "s.onnx")):
        with pytest.raises(InvalidModel) as caught:
            command(path)
        assert "tensor 'w'" in str(caught.value) and said in str(caught.value) and caught.value.remedy
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["node", "tensor", "op_type", "domain", "output", "graph", "function", "body"])
def test_names_that_are_not_text(where: str, tmp_path: Path) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], constants={"w": np.ones((4, 4), np.float32)})
    node = model.graph.node[0]
    if where == "node":
        node.name = "QQQQ"
    elif where == "tensor":
        node.input[1] = model.graph.initializer[0].name = "QQQQ"
    elif where == "op_type":
        node.op_type = "QQQQ"
    elif where == "domain":
        model.opset_import.append(helper.make_opsetid("QQQQ", 1))
    elif where == "output":
        node.output[0] = model.graph.output[0].name = "QQQQ"
    elif where == "graph":
        model.graph.name = "QQQQ"
    elif where == "function":
        inner = helper.make_node("Relu", ["a"], ["b"], "QQQQ")
        model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)]))
    else:
        body = helper.make_graph([helper.make_node("Relu", ["x"], ["QQQQ"])], "body", [], [tensor("QQQQ", None)])
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(b"QQQQ", b"a\xff\xfeb"))
    fails(InvalidModel, path, r"holds a name that is not UTF-8: b'a\xff\xfeb'", "Rename it")
    for command in (check_onnx, check_file, lambda path: prune_onnx(path, tmp_path / "s.onnx")):
        with pytest.raises(InvalidModel, match="not UTF-8"):
            command(path)
    assert list(tmp_path.iterdir()) == [path]


def test_external_data_without_a_folder(tmp_path: Path) -> None:
    data = save_external(tmp_path).read_bytes()
    fails(InvalidModel, data, "'m.data'", "without its folder")


# --- contradictions ----------------------------------------------------------------------------------------


def test_initializer_of_the_wrong_size() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], constants={"w": np.ones((4, 4), np.float32)})
    model.graph.initializer[0].raw_data = b"\x00" * 12
    fails(InvalidModel, model, "tensor 'w' holds 12 bytes", "needs 64", "MatMul_0")


def test_dangling_input() -> None:
    model = model_of([helper.make_node("Add", ["x", "nowhere"], ["y"], name="sum")])
    fails(InvalidModel, model, "layer 'sum'", "'nowhere'", "neither an input, an initializer nor a result")


def test_dangling_output() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["z"])])
    fails(InvalidModel, model, "output 'y'")


def test_value_made_twice() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="a"),
        helper.make_node("Abs", ["x"], ["y"], name="b"),
    ]
    fails(InvalidModel, model_of(nodes), "'y' is produced twice", "layer 'b'")


def test_cycle() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Abs", ["b"], ["c"], name="third"),
        helper.make_node("Neg", ["c"], ["y"], name="behind"),
    ]
    message = fails(InvalidModel, model_of(nodes), "cycle")
    assert "behind" not in message


def test_shapes_that_do_not_fit() -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        constants={"w": np.ones((3, 4), np.float32)},
    )
    fails(InvalidModel, model, "layer 'fc'", "MatMul does not fit its inputs", "float32[2,4]", "float32[4,3]")


def test_index_out_of_range_in_a_constant() -> None:
    constants = {"t": np.arange(3), "i": np.asarray([7])}
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["g"], name="pick"),
        helper.make_node("Reshape", ["x", "g"], ["y"]),
    ]
    fails(InvalidModel, model_of(nodes, constants=constants), "layer 'pick'")


def test_missing_attribute_and_input() -> None:
    fails(
        InvalidModel,
        model_of([helper.make_node("Concat", ["x", "x"], ["y"], name="cat")]),
        "layer 'cat'",
        "'axis'",
    )
    fails(
        InvalidModel,
        model_of([helper.make_node("Conv", ["x"], ["y"], name="conv")]),
        "layer 'conv'",
        "input 1",
    )


def test_attribute_of_the_wrong_type() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name="s", axis="last")
    fails(InvalidModel, model_of([node]), "layer 's'", "'axis'")


def test_declared_output_type_contradicts() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], outputs=[tensor("y", None, TensorProto.INT64)])
    fails(InvalidModel, model, "'y' is declared int64 but computed as float32")


def test_doubled_declarations() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    fails(InvalidModel, model_of(nodes, inputs=[tensor("x", [2]), tensor("x", [2])]), "'x' is declared twice")
    fails(InvalidModel, model_of(nodes, outputs=[tensor("y", None)] * 2), "'y' is declared twice")


def test_recursive_function() -> None:
    function = helper.make_function(
        "own",
        "F",
        ["a"],
        ["b"],
        [helper.make_node("F", ["a"], ["b"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="own", name="f")])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    fails(InvalidModel, model, "calls itself")


# --- shapes ------------------------------------------------------------------------------------------------


def symbolic() -> onnx.ModelProto:
    inputs = [tensor("image", ["batch", 3, "height", "width"]), tensor("mask", ["batch", 1, 1, 1])]
    return model_of([helper.make_node("Mul", ["image", "mask"], ["y"])], inputs=inputs)


def test_symbolic_dimensions_without_shapes() -> None:
    fails(
        ConfigError,
        symbolic(),
        "image [batch, 3, height, width]; mask [batch, 1, 1, 1]",
        "--shape image=1x3x224x224 --shape mask=1x1x1x1",
    )


def test_one_shape_fixes_a_dimension_everywhere() -> None:
    graph = import_onnx(symbolic(), {"image": (5, 3, 8, 9)})
    assert graph.types["mask"].shape == (5, 1, 1, 1)


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        ({"image": (5, 3, 8)}, "has 3 axes, not 4"),
        ({"image": (5, 4, 8, 9)}, "4 on axis 1, where the model has the fixed size 3"),
        ({"image": (0, 3, 8, 9)}, "a size below 1"),
        (
            {"image": (5, 3, 8, 9), "mask": (4, 1, 1, 1)},
            "'batch' is 5 in input 'image' and 4 in input 'mask'",
        ),
        ({"picture": (5, 3, 8, 9)}, "no input 'picture'. Its inputs are: image, mask"),
    ],
)
def test_shapes_that_do_not_fit_the_model(shapes: dict[str, tuple[int, ...]], part: str) -> None:
    fails(ConfigError, symbolic(), part, shapes=shapes)


def test_unknown_rank() -> None:
    model = good()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    fails(ConfigError, model, "x [unknown rank]", "--shape x=")
    assert import_onnx(model, {"x": (3,)}).types["x"].shape == (3,)


# --- what is not supported ---------------------------------------------------------------------------------


def test_all_unsupported_operators_in_one_message() -> None:
    nodes = [helper.make_node("NonMaxSuppression", ["x", "x"], [f"n{i}"], name=f"nms{i}") for i in range(5)]
    nodes += [
        helper.make_node("Special", ["x"], ["s"], domain="my.ops", name="mine"),
        helper.make_node("Det", ["s"], ["d"], name="behind_mine"),
        helper.make_node("MaxPool", ["p"], ["m", "indices"], kernel_shape=[2], name="pool"),
        helper.make_node("Concat", [*(f"n{i}" for i in range(5)), "d", "m", "indices"], ["y"], axis=0),
    ]
    inputs = [tensor("x", [2, 4, 4]), tensor("p", [1, 2, 8])]
    fails(
        UnsupportedModel,
        model_of(nodes, inputs=inputs),
        "4 operators of the model cannot be run",
        "NonMaxSuppression (5 nodes: 'nms0', 'nms1', 'nms2' and 2 more)",
        "my.ops.Special (1 node: 'mine')",
        "Det (1 node: 'behind_mine')",
        "MaxPool (1 node: 'pool'; MaxPool with its indices output)",
        "onnx.utils.extract_model",
    )


def test_unsupported_operators_that_nobody_needs_do_not_matter() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Special", ["x"], ["s"], domain="my.ops"),
        helper.make_node("BatchNormalization", ["x", "a", "a", "a", "a"], ["b"], training_mode=1),
    ]
    import_onnx(model_of(nodes, constants={"a": np.ones(4, np.float32)}))


def test_data_dependent_shape() -> None:
    model = model_of(
        [helper.make_node("Reshape", ["x", "s"], ["y"], name="r")],
        inputs=[tensor("x", [4]), tensor("s", [2], TensorProto.INT64)],
    )
    fails(UnsupportedModel, model, "Reshape (1 node: 'r'", "the shape ('s') is computed at run time")


def test_random_operators_are_no_constants() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[2, 4]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    fails(UnsupportedModel, model_of(nodes), "RandomNormal")


def test_strings_and_sequences() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    fails(UnsupportedModel, model_of(nodes, inputs=[tensor("x", [2], TensorProto.STRING)]), "elements of STRING")
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [2])
    fails(UnsupportedModel, model_of(nodes, inputs=[sequence]), "is a sequence, not a tensor")


def test_opsets_too_old_and_too_new() -> None:
    model = good()
    model.opset_import[0].version = 6
    fails(UnsupportedModel, model, "opset 6, older than 7", "convert_version")
    model.opset_import[0].version = 999
    fails(UnsupportedModel, model, "opset 999", "Relu")


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "'tf_crop_and_resize'"),
        ({"antialias": 1, "mode": "linear"}, "antialias"),
        ({"mode": "quintic"}, "'quintic'"),
    ],
)
def test_resize_that_is_not_supported(attributes: dict[str, object], part: str) -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="small", **attributes)
    constants = {"scales": np.asarray([1, 0.5], np.float32)}
    fails(UnsupportedModel, model_of([node], constants=constants, opset=18), "'small'", part)


def test_quantising_to_four_bits() -> None:
    zero = helper.make_tensor("z", TensorProto.INT4, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, constants={"s": np.asarray(0.1, np.float32)}, opset=21)
    model.graph.initializer.append(zero)
    fails(UnsupportedModel, model, "QuantizeLinear to int4")
