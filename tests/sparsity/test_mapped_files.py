"""Large ONNX files are read without their weights, which stay in the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import dense, model, node

from tamis.errors import InvalidModel
from tamis.onnx_files import external_files, load_model, mapped, to_array
from tamis.sparsity import check_onnx, onnx_edit, prune_onnx


@pytest.fixture
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "LARGE_FILE", 1)
    monkeypatch.setattr(mapped, "_LARGE_TENSOR", 300)


def sample() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "k"), node("MatMul", "k v")]
    proto = model(nodes, w=dense(16, 32), b=dense(32), v=dense(32, 16).astype(np.float64))
    typed = helper.make_tensor("t", TensorProto.FLOAT, [400], np.arange(400.0))  # not raw
    proto.graph.initializer.append(typed)
    proto.metadata_props.add(key="note", value="x" * 500)
    proto.doc_string = "y" * 500
    return proto


@pytest.mark.usefixtures("every_file_is_large")
def test_nothing_but_the_place_of_the_weights_changes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(sample(), path)
    slim, folder, _ = load_model(path, mapped=True)
    assert external_files(slim) == {"m.onnx"} and slim.ByteSize() < path.stat().st_size - 16 * 32 * 4
    for tensor, original in zip(slim.graph.initializer, sample().graph.initializer, strict=True):
        expected = numpy_helper.to_array(original)
        got = to_array(tensor, folder)
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
        external = tensor.data_location == TensorProto.EXTERNAL
        assert external == (original.HasField("raw_data") and len(original.raw_data) >= 300)
        if external:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = original.raw_data
    assert slim == sample()
    proto = sample()
    proto.graph.initializer[0].data_location = TensorProto.DEFAULT  # said expressly, as some writers do
    onnx.save(proto, path)
    np.testing.assert_array_equal(
        to_array(load_model(path, mapped=True)[0].graph.initializer[0], folder), dense(16, 32)
    )
    onnx.save(sample(), path)
    assert load_model(path)[0] == sample()  # unless asked


def test_checks_and_pruned_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(sample(), path)
    found, report = check_onnx(path), prune_onnx(path, tmp_path / "read.onnx")
    monkeypatch.setattr(mapped, "LARGE_FILE", 1)
    monkeypatch.setattr(mapped, "_LARGE_TENSOR", 300)
    assert check_onnx(path) == found
    assert prune_onnx(path, tmp_path / "s.onnx").layers == report.layers
    assert (tmp_path / "s.onnx").read_bytes() == (tmp_path / "read.onnx").read_bytes()
    assert {each.name for each in tmp_path.iterdir()} == {"m.onnx", "read.onnx", "s.onnx"}
    prune_onnx(path, path, exclude=["v"], overwrite=True)  # out of itself into itself
    before = numpy_helper.to_array(sample().graph.initializer[2])
    assert numpy_helper.to_array(onnx.load(path).graph.initializer[2]).tobytes() == before.tobytes()
    monkeypatch.setattr(onnx_edit, "ONE_FILE_BYTES", 10)
    prune_onnx(path, tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx.data").exists() and all(each.eligible for each in check_onnx(tmp_path / "s.onnx"))


@pytest.mark.usefixtures("every_file_is_large")
def test_links_and_files_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(sample(), path)
    whole = path.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.onnx"
    link.symlink_to(path)
    assert external_files(load_model(link, mapped=True)[0]) == set()
    assert len(check_onnx(link)) == 2
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidModel, match=r"is not an ONNX model, or is truncated"):
            check_onnx(path)
    for noise in (b"\xff" * 100, bytes(range(256)), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"):
        path.write_bytes(noise)
        with pytest.raises(InvalidModel, match="is not an ONNX model"):
            check_onnx(path)


def test_a_large_model_is_pruned_in_less_than_twice_its_size(tmp_path: Path) -> None:
    """In a process of its own, whose largest size is compared with that of a tiny model."""
    small, large, layers, width = tmp_path / "small.onnx", tmp_path / "large.onnx", 10, 1024
    onnx.save(model([node("MatMul", "x w")], w=dense(8, 8)), small)
    weight = dense(width, width)
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    proto = model(nodes, **{f"w{i}": weight for i in range(layers)})
    proto.graph.output[0].name = f"h{layers}"
    onnx.save(proto, large)
    code = (
        "import sys, resource; from tamis.onnx_files import mapped; from tamis.sparsity import onnx_edit, prune_onnx\n"
        "mapped.LARGE_FILE = onnx_edit.ONE_FILE_BYTES = 1 << 20\n"
        "prune_onnx(*sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def measured(path: Path) -> int:
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "s.onnx")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    used = (measured(large) - measured(small)) * 1024
    assert used < 2 * large.stat().st_size, f"{used / large.stat().st_size:.2f} times its size"
