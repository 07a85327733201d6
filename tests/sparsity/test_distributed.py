"""Two processes over gloo: masks are equal in both, and training is as in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("distributed_training.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    commands = [[sys.executable, str(PROGRAM), str(rank), str(folder / "meeting"), str(folder)] for rank in range(2)]
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for each in commands]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return folder


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one(results: Path, kind: str, refine: int) -> None:
    alone = torch.load(results / f"alone-{refine}-0.pt", weights_only=True)
    for rank in range(2):
        together = torch.load(results / f"{kind}-{refine}-{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for key, tensor in alone.items():
            assert torch.equal(tensor == 0, together[key] == 0), key
            torch.testing.assert_close(together[key], tensor, rtol=1e-4, atol=1e-6)
