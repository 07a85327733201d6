"""`python -m models resnet50 --batch 1 --sparsity 2:4 -o resnet50.onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.catalogue import MODELS, SMALL
from models.exporting import export


def main() -> None:
    """Export one model and print what its layers became."""
    parser = argparse.ArgumentParser(prog="python -m models", description="Export a benchmark model as ONNX.")
    parser.add_argument("model", choices=[spec.name for spec in MODELS + SMALL], metavar="MODEL", help="%(choices)s")
    parser.add_argument("--batch", type=int, default=1, help="batch size (default: 1)")
    parser.add_argument("--sparsity", default="2:4", help="an N:M pattern, or 'dense' (default: 2:4)")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: MODEL.onnx)")
    options = parser.parse_args()
    path = options.output or Path(f"{options.model}.onnx")
    report = export(options.model, path, options.batch, options.sparsity)
    for layer in report.layers:
        found = layer.reason or f"{layer.zeros:.1%} zeros along axis {layer.axis}"
        print(f"{layer.op:14} {'x'.join(map(str, layer.shape)):16} {layer.name}: {found}")
    error = "not compared" if report.max_error is None else f"{report.max_error:.1e} from torch"
    eligible = sum(layer.eligible for layer in report.layers)
    print(f"{report.path}: {eligible} of {len(report.layers)} layers {options.sparsity}, outputs {error}")


if __name__ == "__main__":
    main()
