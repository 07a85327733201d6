"""Chains of linear layers in one parallel region, against float64."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from cpu_reference import NUMPY, assert_close, poison, reference, rounded, weight_for

from tamis.formats import DENSE, TWO_FOUR
from tamis.kernels.cpu import Chain, Layer, LinearSpec, Step, load, pack

RELU = (Step("relu"),)
WIDTHS = ((13, 512, 256, 128), (479, 65, 33, 17, 1), (1, 1, 1), (40, 3, 100, 31, 50))


def _layers(rng, widths, dtype, pattern, steps=RELU):
    """Layers, their plain weights and biases."""
    made, plain = [], []
    for k, n in itertools.pairwise(widths):
        weight = weight_for(rng, n, k, pattern, dtype) / np.float32(2 ** round(np.log2(k) / 2))  # stays exact
        bias = rng.standard_normal(n).astype(np.float32)
        spec = LinearSpec(n, k, dtype, pattern, steps)
        made.append(Layer(spec, pack(weight, spec), bias))
        plain.append((weight, bias))
    return made, plain


def _expected(x, plain, steps, inner_dtype):
    """Float64 layers, with what lies between them rounded to ``inner_dtype``."""
    h = x.astype(np.float64)
    for i, (weight, bias) in enumerate(plain):
        h = reference(rounded(h, inner_dtype) if i else h, weight, bias, steps)
    return h


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", [DENSE, TWO_FOUR], ids=str)
def test_chain(level, dtype, pattern):
    library, isa = level
    rng = np.random.default_rng(20)
    for widths in WIDTHS:
        layers, plain = _layers(rng, widths, dtype, pattern)
        for rows, threads in ((1, 1), (1, 2), (3, 2), (16, 1), (17, 5), (64, 2), (130, 2)):
            x = rounded(rng.standard_normal((rows, widths[0])), dtype)
            chain = Chain(layers, threads=threads, isa=isa, library=library)
            poison(chain, rows)
            got = chain.apply(x)
            exact = _expected(x, plain, RELU, "float32")
            coarse = 1e-5 if dtype == "float32" else 2e-2  # bfloat16 between layers: 2^-9 for each of them
            assert_close(got, exact, np.full(exact.shape, coarse * max(1.0, np.abs(exact).max())))


def test_bfloat16_chain_rounds_between_layers_once(level):
    """Exact small integers pass through every layer without any error, whatever the rounding."""
    library, isa = level
    rng = np.random.default_rng(21)
    layers, plain = [], []
    for k, n in ((40, 33), (33, 50), (50, 7)):
        weight = np.zeros((n, k), np.float32)
        for row in range(n):
            weight[row, rng.integers(0, k, 2)] = rng.choice([-1, 1], 2)
        spec = LinearSpec(n, k, "bfloat16", TWO_FOUR, (Step("relu"),))
        layers.append(Layer(spec, pack(weight, spec)))
        plain.append((weight, None))
    for rows in (1, 5, 40):
        x = rng.integers(-4, 5, (rows, 40)).astype(np.float32)
        got = Chain(layers, threads=2, isa=isa, library=library).apply(x)
        np.testing.assert_array_equal(got, _expected(x, plain, RELU, "float32"))


def test_padding_between_layers_is_zero_even_after_sigmoid(level):
    """sigmoid(0) is not 0: outputs that only pad a tile must not reach the next layer, nor must NaN."""
    library, isa = level
    rng = np.random.default_rng(22)
    for dtype in ("float32", "bfloat16"):
        steps = (Step("sigmoid"),)
        layers, plain = _layers(rng, (20, 5, 49, 3), dtype, DENSE, steps)
        for rows in (1, 18):
            x = rounded(rng.standard_normal((rows, 20)), dtype)
            chain = Chain(layers, threads=1, isa=isa, library=library)
            poison(chain, rows)
            exact = _expected(x, plain, steps, "float32")
            assert_close(chain.apply(x), exact, np.full(exact.shape, 1e-5 if dtype == "float32" else 1e-2))


def test_types_may_change_along_a_chain(level):
    library, isa = level
    rng = np.random.default_rng(23)
    kinds = (("float32", DENSE), ("bfloat16", TWO_FOUR), ("bfloat16", DENSE), ("float32", TWO_FOUR))
    layers, plain = [], []
    for (k, n), (dtype, pattern) in zip(((30, 70), (70, 40), (40, 90), (90, 20)), kinds, strict=True):
        one, weights = _layers(rng, (k, n), dtype, pattern)
        layers += one
        plain += weights
    for rows in (1, 20):
        x = rng.standard_normal((rows, 30)).astype(NUMPY["bfloat16"])
        chain = Chain(layers, threads=2, isa=isa, library=library, x_dtype="bfloat16", y_dtype="bfloat16")
        poison(chain, rows)
        exact = _expected(x.astype(np.float32), plain, RELU, "float32")
        assert_close(chain.apply(x), exact, np.full(exact.shape, 3e-2 * np.abs(exact).max()))


def test_residuals_of_several_layers(level):
    library, isa = level
    rng = np.random.default_rng(24)
    weights = [weight_for(rng, n, k, DENSE, "float32") for n, k in ((40, 20), (33, 40), (7, 33))]
    kinds = ((Step("add_residual"), Step("relu")), (Step("relu"),), (Step("tanh"), Step("add_residual")))
    layers = []
    for weight, steps in zip(weights, kinds, strict=True):
        spec = LinearSpec(*weight.shape, "float32", DENSE, steps)
        layers.append(Layer(spec, pack(weight, spec)))
    chain = Chain(layers, threads=2, isa=isa, library=library)
    for rows in (1, 19):
        x = rng.standard_normal((rows, 20)).astype(np.float32)
        first, last = (rng.standard_normal((rows, n)).astype(np.float32) for n in (40, 7))
        h = reference(x, weights[0], None, kinds[0], first)
        h = reference(h, weights[1], None, kinds[1])
        exact = reference(h, weights[2], None, kinds[2], last)
        assert_close(chain.apply(x, [first, last]), exact, np.full(exact.shape, 1e-4))


@pytest.mark.usefixtures("all_cores")
def test_chains_of_several_threads_at_once():
    """Each calling thread has a chain of its own; they must not disturb each other or PyTorch."""
    rng = np.random.default_rng(25)
    layers, _ = _layers(rng, (64, 100, 50, 10), "bfloat16", TWO_FOUR)
    x = rounded(rng.standard_normal((4, 64)), "bfloat16")
    first = Chain(layers, threads=2).apply(x)
    wrong = []

    def work():
        chain = Chain(layers, threads=2)
        wrong.extend(i for i in range(50) if not (chain.apply(x) == first).all())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_taking_turns_with_pytorch(level):
    """Results of both stay right when they alternate (OpenMP workers, AMX tile configuration)."""
    library, isa = level
    rng = np.random.default_rng(26)
    layers, _ = _layers(rng, (64, 128, 32), "bfloat16", TWO_FOUR)
    chain = Chain(layers, threads=2, isa=isa, library=library)
    x = rounded(rng.standard_normal((5, 64)), "bfloat16")
    ours = chain.apply(x)
    linear = torch.nn.Linear(256, 256).bfloat16()
    tensor = torch.randn(64, 256).bfloat16()
    with torch.inference_mode():
        theirs = linear(tensor)
        for _ in range(20):
            assert (chain.apply(x) == ours).all()
            assert torch.equal(linear(tensor), theirs)


def test_best_level_is_the_default():
    layers, _ = _layers(np.random.default_rng(27), (8, 4), "float32", DENSE)
    library = load()
    assert Chain(layers)._chain.isa == library.level(None) == library.level(library.levels[-1])
