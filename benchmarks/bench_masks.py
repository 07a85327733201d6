"""How long a 2:4 magnitude mask of a large weight takes, beside the obvious one by ``torch.topk``.

    python benchmarks/bench_masks.py
    python benchmarks/bench_masks.py --device cpu --size 512 --output trial.json     # try the script out

A call is timed as a whole, its check for NaN included. Calls take turns over copies of the weight that do not
fit in the L2 cache together. Each contestant's mask, made in memory that held garbage, is compared with one by NumPy.
Rows go to ``results/masks-GPU.json``; ``max_rel_error`` is the fraction of elements that differ.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gpu_state import gpu_state, short_name
from results import Row, command_line, merge, summarise
from tamis.devices.cuda.nvml import name_and_driver
from tamis.formats import TWO_FOUR
from tamis.sparsity import magnitude_mask

BENCH = "masks"
GOAL_US = 1000.0
ROUNDS, CALLS = 15, 8
CACHE_BYTES = 256 << 20  # more than any L2, together with what a call writes
MOST_COPIES = 32  # of small weights, in trials
PRECISIONS = ("float32", "float16", "bfloat16")

Mask = Callable[[torch.Tensor], torch.Tensor]


def by_topk(weight: torch.Tensor) -> torch.Tensor:
    """The two largest of each four by the library; of equal ones it may take any, so that it is not a reference."""
    groups = weight.abs().unflatten(1, (-1, TWO_FOUR.m))
    chosen = groups.topk(TWO_FOUR.n, dim=2).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, chosen, True).flatten(1)


CONTESTANTS: tuple[tuple[str, Mask], ...] = (
    ("tamis", lambda weight: magnitude_mask(weight, TWO_FOUR, 1)),
    ("torch.topk", by_topk),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns, a multiple of 4")
    parser.add_argument("--output", type=Path, help="results file")
    options = parser.parse_args()
    if options.size <= 0 or options.size % TWO_FOUR.m:
        parser.error("--size must be a multiple of 4")
    if options.device == "cpu" and options.output is None:
        parser.error("--device cpu needs --output: trials do not belong to the results")
    found = name_and_driver() if options.device == "cuda" else None
    if options.device == "cuda" and found is None:
        print("there is no GPU: the driver lists none (--device cpu tries the script out)")
        return 1
    name = short_name(found[0]) if found else "cpu"
    output = options.output or Path(__file__).parent / "results" / f"{BENCH}-{name}.json"
    rows = [row for precision in PRECISIONS for row in measured(precision, options.size, torch.device(options.device))]
    about = {"gpu": found[0], "driver": found[1]} if found else {}
    merge(output, rows, about | {"command": command_line(sys.argv)}, key=("bench", "case", "impl", "precision"))
    print(f"wrote {output.name}")
    return 1 if any(row.impl == "tamis" and row.max_rel_error for row in rows) else 0


def measured(precision: str, size: int, device: torch.device) -> list[Row]:
    """A row for each contestant, in turns."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator).to(getattr(torch, precision)).to(device)
    needed = -(-CACHE_BYTES // (weight.numel() * weight.element_size()))
    copies = [weight.clone() for _ in range(min(max(needed, 2), MOST_COPIES))]
    expected = reference(weight)
    wrong = {impl: difference(mask, weight, expected) for impl, mask in CONTESTANTS}
    times: dict[str, list[float]] = {impl: [] for impl, _ in CONTESTANTS}
    before, turn = gpu_state(), 0
    for _ in range(ROUNDS):
        for impl, mask in random.sample(CONTESTANTS, len(CONTESTANTS)):
            turned = [copies[(turn + index) % len(copies)] for index in range(CALLS)]
            turn += CALLS
            times[impl].append(microseconds(mask, turned))
    state = f"{before} -> {gpu_state()}" if before else ""
    rows = []
    for impl, _ in CONTESTANTS:
        moved = round(weight.numel() * (13.5 + 5.25 * weight.element_size())) if impl == "tamis" else 0
        rows.append(Row(BENCH, f"mask-{size}x{size}", impl, precision, str(TWO_FOUR), 1, *summarise(times[impl]),
                        0, moved, wrong[impl], state))  # fmt: skip
        goal = f", goal under {GOAL_US:.0f} us: {'met' if rows[-1].median_us < GOAL_US else 'missed'}"
        print(f"{rows[-1].case} {precision:9} {impl:11} {rows[-1].median_us:9.1f} us, {wrong[impl]:.1e} differ"
              f"{goal if impl == 'tamis' and device.type == 'cuda' else ''}", flush=True)  # fmt: skip
    return rows


def reference(weight: torch.Tensor) -> np.ndarray:
    """The two largest magnitudes of each four along the rows, the lower index of equal ones, by a stable sort."""
    groups = weight.cpu().float().abs().numpy().reshape(-1, TWO_FOUR.m)  # float32 holds 16 bits exactly
    order = np.argsort(-groups, axis=1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[:, : TWO_FOUR.n], True, axis=1)
    return kept.reshape(weight.shape)


def difference(mask: Mask, weight: torch.Tensor, expected: np.ndarray) -> float:
    """The fraction of elements that a mask has wrong, when the allocator hands out memory that is not zero."""
    garbage = [torch.full((weight.numel(),), 0x55, dtype=torch.uint8, device=weight.device) for _ in range(16)]
    del garbage
    found = mask(weight).cpu().view(torch.uint8).numpy()
    return float((found != expected).mean()) if found.shape == expected.shape else 1.0


def microseconds(mask: Mask, weights: list[torch.Tensor]) -> float:
    """Of one call, averaged over one for each weight, after one that is not timed."""
    mask(weights[-1])
    if weights[0].device.type == "cpu":
        began = time.perf_counter()
        for weight in weights:
            mask(weight)
        return (time.perf_counter() - began) / len(weights) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for weight in weights:
        mask(weight)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / len(weights)


if __name__ == "__main__":
    sys.exit(main())
