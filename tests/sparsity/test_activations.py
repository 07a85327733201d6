"""Convolutions as matrix products: equal to PyTorch's, with channels innermost in the columns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tamis.formats import NM, is_nm
from tamis.sparsity import LayerChoice, activations, nm_mask
from tamis.sparsity.activations import channel_squares, from_matrices, hessian, input_matrices, met_by, weight_matrices

LAYERS = {
    "linear": (nn.Linear(8, 6), (3, 5, 8)),
    "linear-vector": (nn.Linear(8, 6), (8,)),
    "conv1d": (nn.Conv1d(8, 6, 3, stride=2, padding=1, dilation=2), (3, 8, 13)),
    "conv2d": (nn.Conv2d(8, 6, (3, 2), stride=(1, 2), padding=(2, 0)), (3, 8, 7, 6)),
    "conv2d-same": (nn.Conv2d(8, 6, (4, 3), padding="same", dilation=2), (2, 8, 7, 6)),
    "conv2d-grouped": (nn.Conv2d(16, 6, 3, padding=1, groups=2), (3, 16, 5, 6)),
    "conv2d-circular": (nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="circular"), (3, 8, 5, 6)),
    "conv2d-reflect": (nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect"), (3, 8, 5, 6)),
    "conv2d-unbatched": (nn.Conv2d(8, 6, 3), (8, 5, 6)),
    "conv3d": (nn.Conv3d(8, 6, (1, 2, 3), padding=(0, 1, 1), groups=2), (2, 8, 3, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("portion", [1, 1 << 24])
def test_products_of_the_matrices_are_the_layer(name: str, portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_PATCH_ELEMENTS", portion)
    layer, shape = LAYERS[name]
    layer = layer.double()
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    choice = LayerChoice("", layer, "weight", 1)
    weight = weight_matrices(choice, layer.weight)
    matrix = torch.cat(list(input_matrices(layer, inputs)), 1)
    product = matrix @ weight.mT  # groups, samples, rows
    with torch.no_grad():
        expected = layer(inputs) - layer.bias.reshape(
            -1, *(1,) * (0 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2)
        )
    if isinstance(layer, nn.Linear):
        torch.testing.assert_close(product[0].reshape(expected.shape), expected)
    else:
        batched = expected if expected.ndim == layer.weight.ndim else expected[None]
        rows = product.transpose(1, 2).reshape(layer.out_channels, batched.shape[0], -1).transpose(0, 1)
        torch.testing.assert_close(rows.reshape(batched.shape), batched)
    torch.testing.assert_close(hessian(choice, inputs), matrix.mT @ matrix)
    torch.testing.assert_close(from_matrices(choice, weight), layer.weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_of_four_columns_lie_on_the_channels(groups: int) -> None:
    layer = nn.Conv2d(16, 8, 3, groups=groups)
    choice = LayerChoice("", layer, "weight", 1)
    scores = torch.rand(weight_matrices(choice, layer.weight).shape, generator=torch.Generator().manual_seed(0))
    mask = from_matrices(choice, nm_mask(scores, NM(2, 4), -1))
    assert is_nm(mask.numpy(), NM(2, 4), 1)
    assert not is_nm(mask.flatten(1).numpy(), NM(2, 4), 1)  # as tools do that flatten the kernel


def test_squares_of_channels() -> None:
    inputs = torch.randn(3, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = inputs.square().sum((0, 2, 3))
    for layer in (nn.Conv2d(8, 4, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2)):
        squares = channel_squares(LayerChoice("", layer, "weight", 1), inputs)
        torch.testing.assert_close(squares, expected.reshape(2, 4))
    squares = channel_squares(LayerChoice("", nn.Linear(6, 2), "weight", 1), inputs.bfloat16())
    assert squares.dtype == torch.float32
    torch.testing.assert_close(squares[0], inputs.bfloat16().float().square().sum((0, 1, 2)))


def test_what_the_output_projection_of_an_attention_is_given() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    choice = LayerChoice("out_proj", attention.out_proj, "weight", 1)
    query, key = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    (given,) = met_by(attention, choice, ((query, key), {"value": key}))
    with torch.no_grad():
        torch.testing.assert_close(attention.out_proj(given), attention(query, key, key)[0])
    assert attention.out_proj is choice.module
