"""All models of the collection: at real sizes, and the same families small for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from models.bert import bert, bert_inputs
from models.conditioning import images, sample_images
from models.densenet import densenet121
from models.detector import detector
from models.dlrm import dlrm, dlrm_interaction
from models.inception import inception
from models.mlp import mlp
from models.mobile import efficientnet_b0, mobilenet_v2, mobilenet_v3
from models.resnet import resnet34, resnet50
from models.spec import ModelSpec
from models.swin import swin
from models.vgg import vgg11
from models.vit import vit


def image_network(
    name: str, build: Callable[..., nn.Module], size: int = 224, output: str = "logits", **arguments: Any
) -> ModelSpec:
    """A network from images of `size` to one output; `arguments` go to `build`."""
    return ModelSpec(
        name,
        partial(build, size=size, **arguments),
        lambda batch: {"image": images(batch, size)},
        (output,),
        partial(sample_images, size),
    )


def normal(**shapes: tuple[int, ...]) -> Callable[[int], dict[str, torch.Tensor]]:
    """Standard normal inputs; the shapes are without the batch."""

    def draw(batch: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}

    return draw


HIDDEN = ("last_hidden_state", "pooler_output")

MODELS: tuple[ModelSpec, ...] = (
    image_network("resnet34", resnet34),
    image_network("resnet50", resnet50),
    image_network("vit-b16", vit),
    image_network("detector", detector, 640, "boxes"),
    ModelSpec("bert-base", bert, bert_inputs, HIDDEN),
    ModelSpec("bert-large", partial(bert, hidden=1024, layers=24, heads=16), bert_inputs, HIDDEN),
    ModelSpec(
        "bert-large-s384",
        partial(bert, hidden=1024, layers=24, heads=16),
        partial(bert_inputs, sequence=384),
        HIDDEN,
    ),
    ModelSpec("dlrm", dlrm, normal(dense=(13,), products=(351,)), ("score",)),
    ModelSpec("dlrm-interaction", dlrm_interaction, normal(dense=(13,), embeddings=(26, 128)), ("score",)),
    ModelSpec("mlp4096", mlp, normal(x=(4096,)), ("y",)),
    image_network("vgg11", vgg11),
    image_network("densenet121", densenet121),
    image_network("inception", inception, 299),
    image_network("mobilenet-v2", mobilenet_v2),
    image_network("mobilenet-v3", mobilenet_v3),
    image_network("efficientnet-b0", efficientnet_b0),
    image_network("swin-tiny", swin),
)

SMALL: tuple[ModelSpec, ...] = (
    image_network("small-resnet34", resnet34, 64, depths=(1, 1, 1, 1), width=16, classes=10),
    image_network("small-resnet50", resnet50, 64, depths=(1, 2, 1, 1), width=16, classes=10),
    image_network("small-vit", vit, 64, width=96, depth=2, heads=3, classes=10),
    image_network("small-detector", detector, 96, "boxes", width=8, depth=1, classes=3),
    ModelSpec(
        "small-bert",
        partial(bert, hidden=128, layers=2, heads=4, vocabulary=500),
        partial(bert_inputs, sequence=24, vocabulary=500),
        HIDDEN,
    ),
    ModelSpec(
        "small-bert-sdpa",
        partial(bert, hidden=128, layers=1, heads=4, vocabulary=500, attention="sdpa"),
        partial(bert_inputs, sequence=24, vocabulary=500),
        HIDDEN,
    ),
    ModelSpec(
        "small-dlrm",
        partial(dlrm, bottom=(13, 32, 16), top=(37, 64, 32, 1)),
        normal(dense=(13,), products=(21,)),
        ("score",),
    ),
    ModelSpec(
        "small-dlrm-interaction",
        partial(dlrm_interaction, bottom=(13, 32, 16), top=(64, 32, 1), tables=6),
        normal(dense=(13,), embeddings=(6, 16)),
        ("score",),
    ),
    ModelSpec("small-mlp", partial(mlp, width=128, depth=3), normal(x=(128,)), ("y",)),
    image_network("small-vgg11", vgg11, 64, width=8, hidden=64, classes=10),
    image_network("small-densenet121", densenet121, 64, depths=(2, 3, 2), growth=8, classes=10),
    image_network("small-inception", inception, 80, width=8, depth=2, classes=10),
    image_network("small-mobilenet-v2", mobilenet_v2, 64, width=0.5, depth=0.5, classes=10),
    image_network("small-mobilenet-v3", mobilenet_v3, 64, width=0.5, classes=10),
    image_network("small-efficientnet-b0", efficientnet_b0, 64, width=0.5, depth=0.5, classes=10),
    image_network("small-swin", swin, 64, width=32, depths=(2, 2), heads=(2, 4), window=4, classes=10),
)


def get(name: str) -> ModelSpec:
    """The model called `name`, of either size; `KeyError` with the known names otherwise."""
    known = {spec.name: spec for spec in MODELS + SMALL}
    if name not in known:
        raise KeyError(f"no model '{name}'; known: {', '.join(known)}")
    return known[name]
