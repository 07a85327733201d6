"""Checking files of all kinds, and what is said of files that are none of them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_graphs import dense, model, node, sparse
from safetensors.torch import save_file
from torch import nn

from tamis.errors import ConfigError, InvalidModel
from tamis.formats import NM
from tamis.sparsity import LayerCheck, check_file, named, prune, require_named


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6), nn.Linear(6, 4))
    prune(network, exclude=["2"])
    from tamis.sparsity import finalize

    finalize(network)
    return network.state_dict()


EXPECTED = [("0.weight", True, True), ("2.weight", False, True), ("3.weight", False, False)]


def summary(layers: tuple[LayerCheck, ...]) -> list[tuple[str, bool, bool]]:
    return [(layer.name, layer.eligible, layer.fits) for layer in layers]


def test_onnx(tmp_path: Path) -> None:
    path = tmp_path / "file"
    onnx.save(model([node("Gemm", "x w", transB=1)], w=sparse(8, 8, axis=1)), path)
    calls: list[tuple[Any, ...]] = []
    found = check_file(path, "1:4", progress=lambda *call: calls.append(call))
    assert found.kind == "onnx" and found.notes == ()
    assert found.layers[0].found == NM(2, 4) and not found.layers[0].eligible
    assert calls == [("check", 0, 1, "the_Gemm"), ("check", 1, 1, "")]


def test_weights_of_onnx_operators_that_are_not_judged_are_mentioned(tmp_path: Path) -> None:
    lstm = helper.make_node("LSTM", ["x", "wi", "wr"], ["l"], hidden_size=4)
    proto = model([lstm, node("MatMul", "l w")], wi=dense(1, 16, 8), wr=dense(1, 16, 4), w=dense(4, 4))
    onnx.save(proto, tmp_path / "m.onnx")
    assert check_file(tmp_path / "m.onnx").notes == ("not looked into: the weights of 1 LSTM",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict", "lightning"])
def test_torch_checkpoints(key: str, legacy: bool, tmp_path: Path) -> None:
    whole: Any = state()
    others = {"epoch": 3, "rng": torch.zeros(4, dtype=torch.uint8), "optimizer": {"state": {}, "param_groups": []}}
    if key == "lightning":
        whole, key = {"model": {"state_dict": whole, "cfg": 1}, **others}, "model"
    elif key:
        whole = {key: whole, **others}
    torch.save(whole, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    found = check_file(tmp_path / "w.pt")
    assert found.kind == "torch" and summary(found.layers) == EXPECTED
    note = f"the weights under '{key}' were checked; the file also holds epoch, rng, optimizer"
    assert found.notes == ((note,) if key else ())


def test_safetensors(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "renamed")
    found = check_file(tmp_path / "renamed")
    assert found.kind == "safetensors" and summary(found.layers) == EXPECTED


def test_types_of_tensors(tmp_path: Path) -> None:
    weight = torch.from_numpy(sparse(8, 8, axis=1))
    given = {
        "half.weight": weight.half(),
        "brain.weight": weight.bfloat16(),
        "eight.weight": weight.to(torch.float8_e4m3fn),
        "signed.weight": (weight * 20).to(torch.int8),
        "packed.weight": (weight.abs() * 20).to(torch.uint8),
    }
    save_file(given, tmp_path / "w.safetensors")
    torch.save(given | {"sparse.weight": weight.to_sparse()}, tmp_path / "w.pt")
    found = {layer.name: layer for layer in check_file(tmp_path / "w.pt").layers}
    assert check_file(tmp_path / "w.safetensors").layers == tuple(found[name] for name in sorted(given))
    for name, layer in found.items():
        assert layer.eligible == (name != "packed.weight"), layer
    assert found["packed.weight"].reason == "stored as uint8: which values stand for zero is not in the state dict"
    assert not found["packed.weight"].fits


def test_four_bit_floats_are_not_judged(tmp_path: Path) -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this PyTorch has none")
    torch.save({"w.weight": torch.zeros(8, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "w.pt")
    (layer,) = check_file(tmp_path / "w.pt").layers
    assert "float4" in str(layer.reason) and not layer.fits


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_pickles_is_not_run(tmp_path: Path) -> None:
    for legacy in (False, True):
        torch.save({"w": Evil(tmp_path / "made")}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InvalidModel, match=r"holds code or objects.*mkdir.*state_dict\(\)"):
            check_file(tmp_path / "w.pt")
    torch.save(nn.Linear(4, 4), tmp_path / "w.pt")
    with pytest.raises(InvalidModel, match=r"torch\.nn\.modules\.linear\.Linear.*package\.module:factory"):
        check_file(tmp_path / "w.pt")
    assert not (tmp_path / "made").exists()


def broken_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Names with contents and what is said about them."""
    torch.save(state(), folder / "good")
    checkpoint = (folder / "good").read_bytes()
    save_file(state(), folder / "good")
    tensors = (folder / "good").read_bytes()
    onnx.save(model([node("MatMul", "x w")], w=dense(64, 64)), folder / "good")
    network = (folder / "good").read_bytes()
    (folder / "good").unlink()
    huge = json.dumps({"w.weight": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}}).encode()
    return {
        "empty.onnx": (b"", "is empty"),
        "empty.pt": (b"", "is empty"),
        "half.pt": (checkpoint[: len(checkpoint) // 2], "is damaged"),
        "half.safetensors": (tensors[: len(tensors) // 2], "not a safetensors file, or is damaged"),
        "huge.safetensors": (struct.pack("<Q", len(huge)) + huge, "not a safetensors file, or is damaged"),
        "half.onnx": (network[: len(network) // 2], "is not an ONNX model, or is truncated"),
        "noise.onnx": (bytes(range(255, 0, -1)), "is not an ONNX model"),
        "noise.pt": (b"noise", "is not a file of torch.save, or is damaged"),
        "noise.safetensors": (b"noise", "not a safetensors file, or is damaged"),
        "pickle.bin": (b"\x80\x04noise", "is damaged|holds code"),
        "zip.pth": (b"PK\x03\x04noise", "is damaged"),
        "pointer.onnx": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "page.onnx": (b"<html>", "a web page"),
        "model.safetensors.index.json": (b'{"weight_map": {}}', "is JSON.*each of the files that an index names"),
        "model.gguf": (b"GGUF\x03\0\0\0", "a GGUF file"),
        "array.npy": (b"\x93NUMPY\x01\0", "a NumPy array"),
        "arrays.npz": (b"PK\x03\x04noise", "an archive of NumPy arrays"),
    }


def test_broken_files(tmp_path: Path) -> None:
    for name, (content, said) in broken_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidModel, match=said):
            check_file(tmp_path / name)
    with pytest.raises(InvalidModel, match="does not exist"):
        check_file(tmp_path / "absent.onnx")
    with pytest.raises(InvalidModel, match="is a directory"):
        check_file(tmp_path)
    with pytest.raises(InvalidModel, match="cannot be read"):
        check_file("a\0b")


def test_files_without_weights(tmp_path: Path) -> None:
    onnx.save(model([node("MatMul", "x x")]), tmp_path / "m.onnx")
    torch.save({"a.bias": torch.zeros(4)}, tmp_path / "b.pt")
    save_file({"a.bias": torch.zeros(4)}, tmp_path / "b.safetensors")
    for name in ("m.onnx", "b.pt", "b.safetensors"):
        with pytest.raises(InvalidModel, match=f"{name}' holds no layer with weights"):
            check_file(tmp_path / name)
    for content, said in (({"epoch": 3}, "holds epoch"), ([1, 2], "holds a list"), ({}, "holds nothing")):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InvalidModel, match=f"no state dict that Tamis knows: it {said}"):
            check_file(tmp_path / "w.pt")


def test_torchscript_says_so(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)).save(tmp_path / "w.pt")
    with pytest.raises(InvalidModel, match="is a TorchScript archive"):
        check_file(tmp_path / "w.pt")


def test_names_match_weights_nodes_and_modules() -> None:
    layer = LayerCheck("encoder.0.weight", "MatMul", 0, (4, 4), 0.5, 1.0, None, "node_linear", "encoder.0")
    for pattern in ("encoder.0.weight", "encoder.*", "node_linear", "encoder.0", "*linear"):
        assert named(layer, ("x", pattern))
        require_named([layer], [pattern], "--layer")
    assert not named(layer, ("decoder.*", "")) and not named(layer, ())
    with pytest.raises(
        ConfigError, match=r"--layer 'decoder\.\*' matches no layer\. The weights are encoder\.0\.weight"
    ):
        require_named([layer], ["encoder.*", "decoder.*"], "--layer")
    with pytest.raises(ConfigError, match="and 2 more"):
        require_named([layer] * 5, ["x"], "--layer")
    bracketed = LayerCheck("w[0]", "MatMul", 0, (4, 4), 0.5, 1.0, None)
    assert named(bracketed, ["w[0]"])


def test_a_file_that_is_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    """External data is mapped: nothing but the weights of layers is ever touched."""
    proto = model([node("MatMul", "x w", "h"), node("Gather", "e i")], w=sparse(64, 64, axis=0), e=dense(4, 4))
    proto.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [1]))
    table = proto.graph.initializer[1]
    table.ClearField("raw_data")
    table.dims[:] = [1 << 30, 4]
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value="data")
    with (tmp_path / "data").open("wb") as file:
        file.truncate(1 << 34)  # a hole
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (layer,) = check_file(tmp_path / "m.onnx").layers
    assert layer.eligible and np.prod(layer.shape) == 4096
