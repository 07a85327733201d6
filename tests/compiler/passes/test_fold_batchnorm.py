from __future__ import annotations

import numpy as np
from network import Network, body, check

from tamis.compiler.ir.ops import BatchNorm
from tamis.compiler.passes.fold_batchnorm import fold_batchnorm
from tamis.compiler.passes.fold_scale import fold_scale


def batch_norm(net: Network, x: str, *, name: str) -> str:
    channels = net.types[x].shape[1]
    parts = [net.weight(f"{name}.{part}", channels) for part in ("scale", "bias", "mean")]
    variance = net.constant(f"{name}.variance", net.random.random(channels) + 0.1)
    return net.node(BatchNorm(1e-5), x, *parts, variance, name=name)


def test_becomes_scale_and_shift() -> None:
    net = Network()
    batch_norm(net, net.input("x", 2, 3, 4, 4), name="bn")
    before = net.graph("bn")
    assert body(before) == ["bn = BatchNorm(%x, bn.scale, bn.bias, bn.mean, bn.variance) epsilon=1e-05"]
    after = check(before, fold_batchnorm)
    assert body(after) == ["bn = Elementwise(%x) | *bn.scale.1 +bn.shift"]
    assert after.types["bn.shift"].shape == (3, 1, 1)


def test_every_rank_and_computed_parameters() -> None:
    for shape in ((4, 3), (2, 3, 5), (1, 3, 2, 2, 2)):
        net = Network()
        batch_norm(net, net.input("x", *shape), name="bn")
        assert len(check(net.graph("bn"), fold_batchnorm).constants) == 2
    net = Network()
    x, scale = net.input("x", 2, 3, 4), net.input("scale", 3)
    others = [net.constant(name, np.ones(3)) for name in ("bias", "mean", "variance")]
    net.node(BatchNorm(1e-5), x, scale, *others, name="bn")
    graph = net.graph("bn")
    assert fold_batchnorm(graph) is graph


def test_conv_takes_it() -> None:
    net = Network()
    x = net.input("x", 2, 4, 6, 6)
    batch_norm(net, net.conv(x, 8, name="conv"), name="bn")
    after = check(net.graph("bn"), lambda graph: fold_scale(fold_batchnorm(graph)))
    assert body(after) == ["bn = Conv(%x, conv.w.scaled) strides=1,1 pads=1,1,1,1 dilations=1,1 | +conv.bias"]
    assert after.nodes[0].origin == ("conv", "bn")
