from __future__ import annotations

from pathlib import Path

import pytest
from network import Network, body, same

from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes import PASSES, run_passes
from tamis.errors import OutputError


def block() -> Graph:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    y = net.binary("mul", net.conv(x, 4, name="c1"), net.weight("g", 4, 1, 1), name="scaled")
    y = net.binary("mul", y, net.unary("sigmoid", y, name="gate"), name="silu")
    net.binary("add", x, net.conv(y, 4, name="c2"), name="y")
    return net.graph("y")


def test_film(tmp_path: Path) -> None:
    before = block()
    after = run_passes(before, dump=tmp_path / "film", verify=True)
    same(before, after)
    names = sorted(path.name for path in (tmp_path / "film").iterdir())
    assert names[0] == "00-import.txt"
    assert names[1:] == [f"{index:02d}-{pass_.__name__}.txt" for index, pass_ in enumerate(PASSES, start=1)]
    assert (tmp_path / "film" / names[0]).read_text().splitlines()[-1] == "6 nodes: 4 Elementwise, 2 Conv"
    assert [line.split("| ")[1] for line in body(after)] == ["+c1.bias silu", "+c2.b +%x"]
    assert set(after.sparsity) == {"c1.w.scaled", "c2.w"}


def test_running_twice_changes_nothing() -> None:
    once = run_passes(block(), verify=True)
    twice = run_passes(once, verify=True)
    assert body(twice) == body(once)


def test_dump_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the graph to"):
        run_passes(block(), dump=tmp_path / "file")
