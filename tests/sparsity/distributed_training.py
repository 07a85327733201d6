"""Run by test_distributed in each of two processes: trains alone, under DDP and under FSDP2 over gloo.

Arguments: rank, file through which the processes meet, folder for the results.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tamis.errors import SparsityError
from tamis.sparsity import SRSTE, Schedule, SparseTraining, bake_state_dict, check_module, finalize

WORLD, STEPS = 2, 6
SPARSE = {"0.weight", "5.weight", "7.weight"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * 25, 16), nn.ReLU(), nn.Linear(16, 3)),
    )


def train(kind: str, rank: int, refine: bool) -> dict[str, torch.Tensor]:
    """The state dict at the end, zeros baked in."""
    model = network()
    training = SparseTraining(model, schedule=Schedule("cubic", 1, 4), refine=SRSTE(1e-2, every=2) if refine else None)
    wrapped: Any = model
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = dist.init_device_mesh("cpu", (WORLD,))
        for layer in model:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimiser = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images, labels = torch.randn(8, 4, 4, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        if kind != "alone":
            images, labels = images.chunk(WORLD)[rank], labels.chunk(WORLD)[rank]
        optimiser.zero_grad()
        nn.functional.cross_entropy(wrapped(images), labels).backward()
        optimiser.step()
        training.step()
    if kind == "fsdp":
        return gathered(model, training)
    training.finalize()
    assert {check.name for check in check_module(model) if check.groups == 1.0} == SPARSE
    return model.state_dict()


def gathered(model: nn.Sequential, training: SparseTraining) -> dict[str, torch.Tensor]:
    placed = model[5].weight  # outside of the forward pass: a part of the weight, masked
    assert type(placed).__name__ == "DTensor" and placed.placements == model[5].bias.placements
    assert training.sharded
    training.require_ended()
    try:
        training.finalize()
    except SparsityError as error:
        assert "bake_state_dict" in str(error), error
    else:
        raise AssertionError("a sharded model was finalized")
    state = bake_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    plain = network()
    plain.load_state_dict(state)
    assert not finalize(plain).layers
    return plain.state_dict()


def main(rank: int, meeting: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    for refine in (False, True):
        for kind in ("alone", "ddp", "fsdp"):
            torch.save(train(kind, rank, refine), folder / f"{kind}-{int(refine)}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
