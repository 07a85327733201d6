"""What an engine remembers of its race: candidates, times, refusals and reasons."""

import sys
from pathlib import Path

import torch
from torch import nn

import tamis
from tamis import sparsity


def main(folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16)).eval()
    sparsity.prune(model)
    sparsity.finalize(model)
    sparsity.export_onnx(model, (torch.randn(1, 4, 8, 8),), folder / "race.onnx")
    engine = tamis.build(folder / "race.onnx")

    for layer in engine.plan.layers:
        print(f"{layer.name}: {layer.chosen_tactic}, {layer.chosen_sparsity}, because {layer.why}")
        for candidate in layer.candidates:
            time = f"{candidate.timing.median_us:.1f} us" if candidate.timing else "-"
            print(f"  {candidate.tactic:14} {candidate.sparsity:6} {candidate.status:8} {time:>10}  {candidate.reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
