"""All models of the collection: at real sizes, and the same families small for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from models.bert import bert, bert_inputs
from models.conditioning import images
from models.dlrm import dlrm, dlrm_interaction
from models.mlp import mlp
from models.resnet import resnet34, resnet50
from models.spec import ModelSpec

Inputs = Callable[[int], dict[str, torch.Tensor]]


def image(size: int) -> Inputs:
    """Inputs of an image network."""
    return lambda batch: {"image": images(batch, size)}


def normal(**shapes: tuple[int, ...]) -> Inputs:
    """Standard normal inputs; the shapes are without the batch."""

    def draw(batch: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}

    return draw


LOGITS = ("logits",)
HIDDEN = ("last_hidden_state", "pooler_output")

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec("resnet34", resnet34, image(224), LOGITS),
    ModelSpec("resnet50", resnet50, image(224), LOGITS),
    ModelSpec("bert-base", bert, bert_inputs, HIDDEN),
    ModelSpec("bert-large", partial(bert, hidden=1024, layers=24, heads=16), bert_inputs, HIDDEN),
    ModelSpec("dlrm", dlrm, normal(dense=(13,), products=(351,)), ("score",)),
    ModelSpec("dlrm-interaction", dlrm_interaction, normal(dense=(13,), embeddings=(26, 128)), ("score",)),
    ModelSpec("mlp4096", mlp, normal(x=(4096,)), ("y",)),
)

SMALL: tuple[ModelSpec, ...] = (
    ModelSpec(
        "small-resnet34", partial(resnet34, depths=(1, 1, 1, 1), width=16, classes=10, size=64), image(64), LOGITS
    ),
    ModelSpec(
        "small-resnet50", partial(resnet50, depths=(1, 2, 1, 1), width=16, classes=10, size=64), image(64), LOGITS
    ),
    ModelSpec(
        "small-bert",
        partial(bert, hidden=128, layers=2, heads=4, vocabulary=500),
        partial(bert_inputs, sequence=24, vocabulary=500),
        HIDDEN,
    ),
    ModelSpec(
        "small-dlrm-interaction",
        partial(dlrm_interaction, bottom=(13, 32, 16), top=(64, 32, 1), tables=6),
        normal(dense=(13,), embeddings=(6, 16)),
        ("score",),
    ),
    ModelSpec("small-mlp", partial(mlp, width=128, depth=3), normal(x=(128,)), ("y",)),
)


def get(name: str) -> ModelSpec:
    """The model called `name`, of either size; `KeyError` with the known names otherwise."""
    known = {spec.name: spec for spec in MODELS + SMALL}
    if name not in known:
        raise KeyError(f"no model '{name}'; known: {', '.join(known)}")
    return known[name]
