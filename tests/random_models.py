"""Random ONNX models: layers of all kinds on images and on tokens, in any order, with values read anywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tamis.formats import TWO_FOUR, magnitude_mask

OPSET = 20
_UNARY = ("Relu", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "HardSwish", "HardSigmoid", "Elu", "Softplus", "Abs", "Erf")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2")


class RandomModel:
    """Writes one model; every drawing comes from the seed.

    Args:
        seed: of the model.
        size: layers to write.
    """

    def __init__(self, seed: int, size: int = 18) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        batch, channels, side = self.draw(1, 2, 3), self.draw(3, 4, 8, 12), self.draw(5, 7, 8)
        image = self.declare("image", (batch, channels, side, side))
        tokens = self.declare("tokens", (batch, self.draw(1, 5, 8), self.draw(8, 12, 16)))
        values = [image, tokens]
        for _ in range(size):
            x = values[-1] if self.random.random() < 0.6 else values[self.draw(*range(len(values)))]
            values.append(self.layer(x, values))
        read = {name for node in self.nodes for name in node.input}
        outputs = [value for value in values if value not in read and value not in ("image", "tokens")]
        inputs = [name for name in ("image", "tokens") if name in read]
        self.feeds = {name: self.random.standard_normal(self.shapes[name]).astype(np.float32) for name in inputs}
        graph = helper.make_graph(
            self.nodes,
            f"random_{seed}",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in outputs],
            self.initializers,
        )
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(self.model, full_check=True)

    def draw(self, *choices: int) -> int:
        """One of some numbers."""
        return int(choices[self.random.integers(len(choices))])

    def declare(self, name: str, shape: tuple[int, ...]) -> str:
        """Note the shape of a value."""
        self.shapes[name] = tuple(int(size) for size in shape)
        return name

    def weight(self, *shape: int, axis: int | None = None) -> str:
        """An initializer; 2:4 along ``axis`` half of the time, where that divides."""
        array = self.random.standard_normal(shape).astype(np.float32)
        if axis is not None:
            array /= np.sqrt(np.prod([size for other, size in enumerate(shape) if other != (0 if axis else 1)]))
            if shape[axis] % 4 == 0 and self.random.random() < 0.5:
                array *= magnitude_mask(array, TWO_FOUR, axis)
        return self.constant(array.astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        """An initializer of given numbers."""
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        """A node of one output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind.lower()}{len(self.nodes)}", **attributes))
        return self.declare(name, shape)

    def layer(self, x: str, values: list[str]) -> str:
        """One layer more on a value."""
        shape = self.shapes[x]
        common: list[Callable[[str], str]] = [self.unary, self.scale, self.clip, self.softmax, self.padded, self.cut]
        by_rank = {
            4: [self.conv, self.conv, self.conv, self.batch_norm, self.pool, self.transposed_conv, self.resize],
            3: [self.linear, self.linear, self.norm, self.heads, self.gather, self.attention],
            2: [self.gemm, self.gemm],
        }
        same = [v for v in values if self.shapes[v] == shape]
        if len(same) > 1 and self.random.random() < 0.25:
            other = same[self.draw(*range(len(same)))]
            return self.node(("Add", "Mul", "Sub", "Max")[self.draw(0, 0, 0, 1, 2, 3)], [x, other], shape)
        if self.random.random() < 0.12:
            return self.change_rank(x)
        candidates = [*common, *by_rank.get(len(shape), []), *by_rank.get(len(shape), [])]
        return candidates[self.draw(*range(len(candidates)))](x)

    def change_rank(self, x: str) -> str:
        """An image becomes tokens or features, tokens become features or an image."""
        shape = self.shapes[x]
        if len(shape) == 4:
            n, c, h, w = shape
            if self.random.random() < 0.5:
                flat = self.node("Reshape", [x, self.constant(np.array([n, c, h * w]))], (n, c, h * w))
                return self.node("Transpose", [flat], (n, h * w, c), perm=[0, 2, 1])
            pooled = self.node("GlobalAveragePool", [x], (n, c, 1, 1))
            return self.node("Flatten", [pooled], (n, c))
        if len(shape) == 3:
            axis = self.draw(1, 2)
            kept = tuple(size for index, size in enumerate(shape) if index != axis)
            kind = _REDUCTIONS[self.draw(*range(len(_REDUCTIONS)))]
            return self.node(kind, [x, self.constant(np.array([axis]))], kept, keepdims=0)
        if len(shape) == 2:
            return self.node("Unsqueeze", [x, self.constant(np.array([1]))], (shape[0], 1, shape[1]))
        return x

    def unary(self, x: str) -> str:
        kind = _UNARY[self.draw(*range(len(_UNARY)))]
        if self.random.random() < 0.2:  # SiLU as exporters spell it
            return self.node("Mul", [x, self.node("Sigmoid", [x], self.shapes[x])], self.shapes[x])
        return self.node(kind, [x], self.shapes[x])

    def scale(self, x: str) -> str:
        shape = self.shapes[x]
        sizes = [size if self.random.random() < 0.5 else 1 for size in shape]
        pair = [x, self.weight(*sizes[self.draw(0, 1) :])]
        return self.node(("Add", "Mul", "Sub")[self.draw(0, 1, 2)], pair[:: self.draw(1, -1)], shape)

    def clip(self, x: str) -> str:
        low, high = self.constant(np.float32(self.draw(-1, 0))), self.constant(np.float32(self.draw(1, 6)))
        return self.node("Clip", [x, low, high], self.shapes[x])

    def softmax(self, x: str) -> str:
        return self.node("Softmax", [x], self.shapes[x], axis=self.draw(-1, 1))

    def padded(self, x: str) -> str:
        shape, axis = self.shapes[x], self.draw(*range(1, len(self.shapes[x])))
        pads = np.zeros((2, len(shape)), np.int64)
        pads[:, axis] = self.draw(0, 1, 2), self.draw(0, 1)
        mode = ("constant", "edge")[self.draw(0, 1)]
        wider = tuple(size + int(extra) for size, extra in zip(shape, pads.sum(0), strict=True))
        return self.node("Pad", [x, self.constant(pads.reshape(-1))], wider, mode=mode)

    def cut(self, x: str) -> str:
        """A part along one axis, or two parts joined the other way round."""
        shape, axis = self.shapes[x], self.draw(*range(1, len(self.shapes[x])))
        size = shape[axis]
        if size < 2:
            return self.unary(x)
        at = self.draw(*range(1, size))

        def part(start: int, stop: int, step: int = 1) -> str:
            numbers = [self.constant(np.array([number])) for number in (start, stop, axis, step)]
            count = len(range(start, stop, step))
            return self.node("Slice", [x, *numbers], (*shape[:axis], count, *shape[axis + 1 :]))

        if self.random.random() < 0.3:
            return part(0, size, 2)
        return self.node("Concat", [part(at, size), part(0, at)], shape, axis=axis)

    def conv(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        kernel, stride, dilation = self.draw(1, 3, 3), self.draw(1, 1, 2), self.draw(1, 1, 2)
        pad = self.draw(0, 1, 1)
        reach = dilation * (kernel - 1) + 1
        if reach > min(h, w) + 2 * pad:
            kernel, reach = 1, 1
        groups = [g for g in (1, 1, 2, 4, c) if c % g == 0]
        group = self.draw(*groups)
        filters = group * self.draw(1, 2, 4) if group > 1 else self.draw(4, 8, 12)
        filters = min(filters, 24) if group == 1 else filters if filters <= 24 else group
        size = ((h + 2 * pad - reach) // stride + 1, (w + 2 * pad - reach) // stride + 1)
        inputs = [x, self.weight(filters, c // group, kernel, kernel, axis=1)]
        if self.random.random() < 0.6:
            inputs.append(self.weight(filters))
        return self.node(
            "Conv", inputs, (n, filters, *size), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
            dilations=[dilation] * 2, group=group,
        )  # fmt: skip

    def transposed_conv(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        stride, filters = self.draw(1, 2), self.draw(4, 8)
        if h * w * stride > 200:
            return self.batch_norm(x)
        size = ((h - 1) * stride + 2, (w - 1) * stride + 2)
        inputs = [x, self.weight(c, filters, 2, 2, axis=0), self.weight(filters)]
        return self.node("ConvTranspose", inputs, (n, filters, *size), kernel_shape=[2, 2], strides=[stride] * 2)

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x][1]
        variance = self.constant(self.random.uniform(0.5, 2, c).astype(np.float32))
        inputs = [x, self.weight(c), self.weight(c), self.weight(c), variance]
        return self.node("BatchNormalization", inputs, self.shapes[x], epsilon=1e-3)

    def pool(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        pad, stride = self.draw(0, 1), self.draw(1, 2)
        if min(h, w) + 2 * pad < 3:
            return self.unary(x)
        size = ((h + 2 * pad - 3) // stride + 1, (w + 2 * pad - 3) // stride + 1)
        kind = ("MaxPool", "AveragePool")[self.draw(0, 1)]
        more = {"count_include_pad": self.draw(0, 1)} if kind == "AveragePool" else {}
        return self.node(kind, [x], (n, c, *size), kernel_shape=[3, 3], strides=[stride] * 2, pads=[pad] * 4, **more)

    def resize(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        if h * w > 100:
            return self.unary(x)
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        mode = ("nearest", "linear")[self.draw(0, 1)]
        where = "asymmetric" if mode == "nearest" else "half_pixel"
        return self.node(
            "Resize", [x, "", scales], (n, c, 2 * h, 2 * w), mode=mode, nearest_mode="floor",
            coordinate_transformation_mode=where,
        )  # fmt: skip

    def linear(self, x: str) -> str:
        n, t, k = self.shapes[x]
        width = self.draw(8, 12, 16)
        y = self.node("MatMul", [x, self.weight(k, width, axis=0)], (n, t, width))
        return self.node("Add", [self.weight(width), y], (n, t, width)) if self.random.random() < 0.6 else y

    def gemm(self, x: str) -> str:
        n, k = self.shapes[x]
        width = self.draw(4, 8, 16)
        if self.random.random() < 0.5:
            return self.node("Gemm", [x, self.weight(width, k, axis=1), self.weight(width)], (n, width), transB=1)
        return self.node("Gemm", [x, self.weight(k, width, axis=0)], (n, width), alpha=0.5)

    def norm(self, x: str) -> str:
        width = self.shapes[x][-1]
        return self.node("LayerNormalization", [x, self.weight(width), self.weight(width)], self.shapes[x], axis=-1)

    def heads(self, x: str) -> str:
        """The token axis and the width change places."""
        n, t, k = self.shapes[x]
        return self.node("Transpose", [x], (n, k, t), perm=[0, 2, 1])

    def gather(self, x: str) -> str:
        n, t, k = self.shapes[x]
        picks = self.random.integers(-t, t, self.draw(1, 3, 6))
        return self.node("Gather", [x, self.constant(picks)], (n, len(picks), k), axis=1)

    def attention(self, x: str) -> str:
        """Self-attention of one head, written out."""
        n, t, k = self.shapes[x]
        q, key, v = (self.node("MatMul", [x, self.weight(k, k, axis=0)], (n, t, k)) for _ in range(3))
        turned = self.node("Transpose", [key], (n, k, t), perm=[0, 2, 1])
        scores = self.node("MatMul", [q, turned], (n, t, t))
        scaled = self.node("Div", [scores, self.constant(np.float32(np.sqrt(k)))], (n, t, t))
        return self.node("MatMul", [self.node("Softmax", [scaled], (n, t, t), axis=-1), v], (n, t, k))
