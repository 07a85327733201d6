"""Matrices beside the own input of a chain's layers (a concatenation without the copy), against float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from cpu_reference import Guarded, assert_close, poison, reference, rounded, weight_for

from tamis.errors import DeviceError, FormatError
from tamis.formats import DENSE, TWO_FOUR
from tamis.kernels.cpu import Chain, Layer, LinearSpec, Piece, Step, load, pack

# Sigmoid does not take zero to zero, so outputs that only pad a tile would show.
STEPS = (Step("sigmoid"),)


@dataclass(frozen=True)
class Case:
    """Columns of x, outputs of each layer, and pieces as (layer, columns, extra lines of 16 zeros before it)."""

    x: int
    outputs: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]


CASES = {
    "dlrm": Case(13, (64, 128, 70, 1), ((2, 351, 0),)),
    "one column": Case(16, (17, 5), ((1, 1, 0),)),
    "after one output": Case(40, (1, 33), ((1, 100, 0),)),
    "several": Case(20, (33, 48, 7), ((1, 1, 0), (1, 16, 0), (1, 65, 2), (2, 3, 1))),
    "beside x": Case(5, (20,), ((0, 30, 0), (0, 1, 0))),
    "beside x and later": Case(35, (50, 9, 130), ((0, 17, 3), (1, 64, 0), (2, 2, 0), (2, 31, 0))),
    "long": Case(1040, (16, 3), ((0, 1100, 0), (1, 2100, 0))),
}


def _widths(case: Case) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Input columns of each layer, and each piece as (layer, column, columns)."""
    own = [case.x, *case.outputs[:-1]]
    placed = []
    for layer, columns, lines in case.pieces:
        column = -(-own[layer] // 16) * 16 + 16 * lines
        placed.append((layer, column, columns))
        own[layer] = column + columns
    return own, placed


def _layers(case: Case, dtype: str, pattern: object):
    """The layers with their plain weights and biases; weights of the zeros between the parts are not zero."""
    rng = np.random.default_rng(30)
    ks, placed = _widths(case)
    layers, plain = [], []
    for k, n in zip(ks, case.outputs, strict=True):
        weight = weight_for(rng, n, k, pattern, dtype) / np.float32(2 ** round(np.log2(k) / 2))
        bias = rng.standard_normal(n).astype(np.float32)
        spec = LinearSpec(n, k, dtype, pattern, STEPS)
        layers.append(Layer(spec, pack(weight, spec), bias))
        plain.append((weight, bias))
    return layers, plain, placed


def _expected(x, others, placed, plain, inner_dtype):
    h = x.astype(np.float64)
    for index, (weight, bias) in enumerate(plain):
        wide = np.zeros((len(x), weight.shape[1]))
        wide[:, : h.shape[1]] = rounded(h, inner_dtype)
        for (layer, column, columns), other in zip(placed, others, strict=True):
            if layer == index:
                wide[:, column : column + columns] = rounded(other.astype(np.float32), inner_dtype)
        h = reference(wide, weight, bias, STEPS)
    return h


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern", [DENSE, TWO_FOUR], ids=str)
def test_pieces(level, name, pattern):
    library, isa = level
    rng = np.random.default_rng(31)
    for dtype in ("float32", "bfloat16"):
        layers, plain, placed = _layers(CASES[name], dtype, pattern)
        inner = "bfloat16" if dtype == "bfloat16" and isa in ("avx512_bf16", "amx") else "float32"
        for number, rows in enumerate((1, 3, 16, 17, 64, 100)):
            kinds = [("float32", "bfloat16")[(number + i) % 2] for i in range(len(placed))]
            shapes = zip(placed, kinds, strict=True)
            sources = [Guarded.make(rows, c, c + 3 * (i % 2), t) for i, ((_, _, c), t) in enumerate(shapes)]
            for source in sources:
                source.matrix[...] = rng.standard_normal(source.matrix.shape)
            x = rng.standard_normal((rows, CASES[name].x)).astype(np.float32)
            exact = _expected(x, [s.matrix for s in sources], placed, plain, inner)
            pieces = [
                Piece(*place, dtype=t, stride=s.matrix.strides[0] // s.matrix.itemsize)
                for place, t, s in zip(placed, kinds, sources, strict=True)
            ]
            for threads in (1, 2, 3):
                chain = Chain(layers, threads=threads, isa=isa, library=library, pieces=pieces, x_columns=CASES[name].x)
                poison(chain, rows)
                target = Guarded.make(rows, exact.shape[1], exact.shape[1] + 5, "float32")
                chain._chain.y.stride = exact.shape[1] + 5
                addresses = [s.matrix.ctypes.data for s in sources]
                chain.run(x.ctypes.data, target.matrix.ctypes.data, rows, pieces=addresses)
                assert target.untouched_outside()
                # Rounding between layers may fall to the other side of a tie: 2^-9 of values below one.
                assert_close(target.matrix, exact, np.full(exact.shape, 5e-6 if inner == "float32" else 4e-3))


def test_a_piece_is_a_concatenation_bit_for_bit(level):
    """Whole tiles beside each other: the same products in the same order as a layer over the joined input."""
    library, isa = level
    rng = np.random.default_rng(32)
    spec = LinearSpec(40, 160, "bfloat16", TWO_FOUR)
    layer = Layer(spec, pack(weight_for(rng, 40, 160, TWO_FOUR, "bfloat16"), spec))
    whole = rng.standard_normal((20, 160)).astype(np.float32)
    x, *others = (np.ascontiguousarray(part) for part in np.split(whole, [64, 96, 112], axis=1))
    pieces = [Piece(0, 64, 32), Piece(0, 96, 16), Piece(0, 112, 48)]
    joined = Chain([layer], isa=isa, library=library).apply(whole)
    apart = Chain([layer], isa=isa, library=library, pieces=pieces, x_columns=64).apply(x, pieces=others)
    np.testing.assert_array_equal(joined, apart)


def test_nothing_but_the_piece_is_read_or_leaks():
    """NaN and infinity in one row of a piece stay in that row."""
    rng = np.random.default_rng(33)
    layers, _, placed = _layers(CASES["several"], "float32", DENSE)
    pieces = [Piece(*place) for place in placed]
    chain = Chain(layers, threads=2, pieces=pieces)
    x = rng.standard_normal((18, 20)).astype(np.float32)
    others = [rng.standard_normal((18, c)).astype(np.float32) for _, _, c in placed]
    clean = chain.apply(x, pieces=others)
    others[2][5, 64] = np.nan
    dirty = chain.apply(x, pieces=others)
    rows = np.arange(18) != 5
    np.testing.assert_array_equal(clean[rows], dirty[rows])
    assert np.isnan(dirty[5]).all()


def test_pieces_and_residuals_together_and_addresses_that_stay():
    rng = np.random.default_rng(34)
    weights = [weight_for(rng, n, k, DENSE, "float32") for n, k in ((20, 8), (6, 39))]
    kinds = ((Step("relu"),), (Step("add_residual"),))
    layers = []
    for weight, steps in zip(weights, kinds, strict=True):
        spec = LinearSpec(*weight.shape, "float32", DENSE, steps)
        layers.append(Layer(spec, pack(weight, spec)))
    chain = Chain(layers, pieces=[Piece(1, 32, 7)])
    x, piece, residual = (rng.standard_normal((3, n)).astype(np.float32) for n in (8, 7, 6))
    h = np.concatenate((reference(x, weights[0], None, kinds[0]), np.zeros((3, 12)), piece), 1)
    exact = reference(h, weights[1], None, kinds[1], residual)
    assert_close(chain.apply(x, [residual], [piece]), exact, np.full(exact.shape, 1e-4))
    y = np.full((3, 6), np.nan, np.float32)
    chain.run(x.ctypes.data, y.ctypes.data, 3)
    assert_close(y, exact, np.full(exact.shape, 1e-4))
    with pytest.raises(ValueError, match="zip"):
        chain.run(x.ctypes.data, y.ctypes.data, 3, pieces=[piece.ctypes.data] * 2)


GOOD = (Piece(0, 32, 20), Piece(1, 48, 5), Piece(1, 64, 9))


def _described(pieces=GOOD, x_columns=20, ks=(52, 73)):
    layers = []
    for n, k in zip((40, 10), ks, strict=True):
        spec = LinearSpec(n, k, "float32", DENSE)
        layers.append(Layer(spec, np.zeros(spec.packed_bytes, np.uint8)))
    return Chain(layers, pieces=pieces, x_columns=x_columns)


@pytest.mark.parametrize(
    "pieces",
    [
        (GOOD[0], replace(GOOD[1], column=40), GOOD[2]),  # inside of the zeros behind the first part's last tile
        (GOOD[0], replace(GOOD[1], column=32), GOOD[2]),  # over the outputs before
        (GOOD[0], replace(GOOD[1], columns=17), GOOD[2]),  # over the next piece
        (GOOD[0], GOOD[2], GOOD[1]),  # not ascending
        (GOOD[1], GOOD[2], GOOD[0]),  # layers out of order
        (*GOOD, Piece(2, 0, 5)),  # no such layer
        (Piece(-1, 0, 5), *GOOD),
        (GOOD[0], GOOD[1], replace(GOOD[2], columns=10)),  # ends behind k
        (GOOD[0], GOOD[1], replace(GOOD[2], columns=8)),  # ends before k
        (GOOD[0], GOOD[1]),
        (replace(GOOD[0], columns=0), *GOOD[1:]),
        (replace(GOOD[0], columns=-4), *GOOD[1:]),
        (replace(GOOD[0], columns=2**62), *GOOD[1:]),
        (replace(GOOD[0], column=2**62), *GOOD[1:]),
        (replace(GOOD[0], column=-16), *GOOD[1:]),
        (replace(GOOD[0], column=16), *GOOD[1:]),  # over x
        (replace(GOOD[0], stride=19), *GOOD[1:]),
    ],
)
def test_bad_pieces_are_refused(pieces):
    _described().reserve(4)
    with pytest.raises(DeviceError, match=r"do not join|stride"):
        _described(pieces).reserve(4)


def test_bad_descriptions_are_refused():
    for x_columns in (-1, 33, 100):
        with pytest.raises(DeviceError, match="do not join"):
            _described(x_columns=x_columns).reserve(4)
    with pytest.raises(FormatError, match="cannot feed"):
        _described(pieces=GOOD[:1])
    with pytest.raises(DeviceError, match="do not join"):
        _described(pieces=(), x_columns=51, ks=(52, 40)).reserve(1)
    chain = _described()
    x, y = np.zeros((4, 20), np.float32), np.zeros((4, 10), np.float32)
    chain.reserve(4)
    chain._pieces[1].matrix.data = None
    with pytest.raises(DeviceError):
        chain.run(x.ctypes.data, y.ctypes.data, 4)
    chain = _described()
    chain._pieces[1].matrix.dtype = 7
    with pytest.raises(DeviceError):
        chain.reserve(4)
    for count, pointer in ((-1, True), (2, True), (3, False)):
        chain = _described()
        chain.reserve(4)
        chain._chain.piece_count = count
        if not pointer:
            chain._chain.pieces = None
        assert load().handle.tamis_chain_run(chain._address, x.ctypes.data, y.ctypes.data, 4) == 1
