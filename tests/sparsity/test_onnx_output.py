"""Outputs in place of what is needed, and files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_graphs import TWO_FOUR, dense, model, node
from torch import nn

from tamis.errors import ConfigError, OutputError, TamisError
from tamis.files import replaced_files
from tamis.formats import is_nm
from tamis.onnx_files import to_array
from tamis.sparsity import check_onnx, export, export_onnx, onnx_edit, prune, prune_onnx

SIZE = 32


def save(path: Path, data: str, scale: float = 1.0) -> Path:
    proto = model([node("MatMul", "x w")], w=(dense(SIZE, SIZE) * scale).astype(np.float32))
    onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def weight(path: Path) -> np.ndarray:
    # not onnx's own reader, which follows no links
    return to_array(onnx.load(path, load_external_data=False).graph.initializer[0], path.parent)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_data(folder: Path) -> tuple[Path, Path]:
    return save(folder / "m.onnx", "s.onnx.data"), folder / "s.onnx"


def data_is_a_link(folder: Path) -> tuple[Path, Path]:
    save(folder / "m.onnx", "other")
    (folder / "s.onnx.data").symlink_to("other")
    return folder / "m.onnx", folder / "s.onnx"


def data_by_a_link(folder: Path) -> tuple[Path, Path]:
    save(folder / "m.onnx", "s.onnx.data")
    (folder / "s.onnx.data").rename(folder / "real")
    (folder / "s.onnx.data").symlink_to("real")
    return folder / "m.onnx", folder / "s.onnx"


def data_through_a_linked_folder(folder: Path) -> tuple[Path, Path]:
    save(folder / "m.onnx", "s.onnx.data")
    (folder / "again").symlink_to(folder)
    return folder / "m.onnx", folder / "again" / "s.onnx"


def output_is_the_data(folder: Path) -> tuple[Path, Path]:
    return save(folder / "m.onnx", "weights"), folder / "weights"


def output_is_a_link_to_the_data(folder: Path) -> tuple[Path, Path]:
    save(folder / "m.onnx", "weights")
    (folder / "s.onnx").symlink_to("weights")
    return folder / "m.onnx", folder / "s.onnx"


def data_is_the_model(folder: Path) -> tuple[Path, Path]:
    return save(folder / "s.onnx.data", "weights"), folder / "s.onnx"


def one_output_of_two(folder: Path) -> tuple[Path, Path]:
    """The output is there already, and has its data in common with what is read."""
    save(folder / "s.onnx", "s.onnx.data")
    return save(folder / "m.onnx", "s.onnx.data"), folder / "s.onnx"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        *(same_data, data_is_a_link, data_by_a_link, data_through_a_linked_folder),
        *(output_is_the_data, output_is_a_link_to_the_data, data_is_the_model, one_output_of_two),
    ],
)
def test_what_the_input_needs_is_not_replaced(
    case: Callable[[Path], tuple[Path, Path]], overwrite: bool, tmp_path: Path
) -> None:
    source, target = case(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"would replace .*, which the model that is read needs\. Choose another"):
        prune_onnx(source, target, overwrite=overwrite)
    assert contents(tmp_path) == before
    np.testing.assert_array_equal(weight(source), dense(SIZE, SIZE))
    prune_onnx(source, tmp_path / "free.onnx")


def test_data_of_another_model_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "m.onnx", "m.data")
    other = save(tmp_path / "other.onnx", "s.onnx.data", 3.0)
    before = contents(tmp_path)
    monkeypatch.setattr(export, "_ONE_FILE_BYTES", 10)
    network, x = nn.Linear(SIZE, SIZE), torch.randn(2, SIZE)
    for write in (
        lambda: prune_onnx(source, tmp_path / "s.onnx"),
        lambda: export_onnx(network, (x,), tmp_path / "s.onnx"),
    ):
        with pytest.raises(OutputError, match=r"s\.onnx\.data exists, and is not the data of .*s\.onnx"):
            write()
        assert contents(tmp_path) == before
    np.testing.assert_array_equal(weight(other), dense(SIZE, SIZE) * 3)
    (tmp_path / "s.onnx").write_bytes(b"no model")
    with pytest.raises(OutputError, match="is not the data of"):
        prune_onnx(source, tmp_path / "s.onnx")
    for _ in range(2):  # its own data is replaced
        prune_onnx(source, tmp_path / "own.onnx")
        assert (tmp_path / "own.onnx.data").exists() and check_onnx(tmp_path / "own.onnx")[0].eligible


def test_outputs_that_are_links(tmp_path: Path) -> None:
    """The file that a link names is replaced; if data lies beside it, nobody who follows the link would find that."""
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.onnx", tmp_path / "link.onnx"
    link.symlink_to(real)
    small = model([node("MatMul", "x w")], w=dense(SIZE, SIZE))
    prune_onnx(small, link)
    assert link.is_symlink() and is_nm(weight(real) != 0, TWO_FOUR, 0)
    before = contents(tmp_path / "there")
    with pytest.raises(OutputError, match="is a link to another folder"):
        prune_onnx(save(tmp_path / "m.onnx", "m.data"), link)
    assert contents(tmp_path / "there") == before
    beside = tmp_path / "there" / "beside.onnx"
    beside.symlink_to("real.onnx")
    prune_onnx(tmp_path / "m.onnx", beside)
    assert is_nm(weight(real) != 0, TWO_FOUR, 0) and is_nm(weight(beside) != 0, TWO_FOUR, 0)
    assert (tmp_path / "there" / "real.onnx.data").exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    small = model([node("MatMul", "x w")], w=dense(8, 8))
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    (tmp_path / "d.onnx.data").mkdir()
    (tmp_path / "d.onnx.data" / "precious").write_text("")
    source = save(tmp_path / "m.onnx", "m.data")
    before = contents(tmp_path)
    for place in ("absent/s.onnx", "circle", "x" * 300, "file/s.onnx", ".", "nul\0"):
        with pytest.raises(OutputError, match=r"cannot write|is a directory"):
            prune_onnx(small, f"{tmp_path}/{place}")
        with pytest.raises(OutputError, match=r"cannot write|is a directory"):
            export_onnx(nn.Linear(8, 8), (torch.randn(1, 8),), f"{tmp_path}/{place}")
    with pytest.raises(OutputError, match=r"d\.onnx\.data"):
        prune_onnx(source, tmp_path / "d.onnx")
    assert contents(tmp_path) == before


def test_several_files_take_their_places_or_none_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m", "m.data"):
        (tmp_path / name).write_text("old")
    genuine = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "m" and Path(target) == tmp_path / "m" and self.read_text() == "new":
            raise OSError(1, "Operation not permitted")
        return genuine(self, target)

    def write() -> None:
        with replaced_files(tmp_path / "m") as draft:
            for name in ("m", "m.data", "m.more"):
                draft.with_name(name).write_text("new")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match=r"cannot write .*m: Operation not permitted"):
        write()
    assert contents(tmp_path) == {"m": b"old", "m.data": b"old"}
    monkeypatch.undo()
    write()
    assert contents(tmp_path) == {"m": b"new", "m.data": b"new", "m.more": b"new"}
    with pytest.raises(ZeroDivisionError), replaced_files(tmp_path / "m") as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"m": b"new", "m.data": b"new", "m.more": b"new"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_large_model_replaces_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_edit, "ONE_FILE_BYTES", 10)
    path = save(tmp_path / "m.onnx", "weights")
    with pytest.raises(TamisError, match="allow it with --overwrite"):
        prune_onnx(path, path)
    prune_onnx(path, path, overwrite=True)
    assert is_nm(weight(path) != 0, TWO_FOUR, 0) and (tmp_path / "m.onnx.data").exists()
    again = nn.Linear(SIZE, SIZE)
    prune(again)
    monkeypatch.setattr(export, "_ONE_FILE_BYTES", 10)
    export_onnx(again, (torch.randn(2, SIZE),), path)  # in the place of what was there, data and all
    assert check_onnx(path)[0].eligible and check_onnx(path)[0].op == "Gemm"
