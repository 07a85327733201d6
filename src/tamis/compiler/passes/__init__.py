"""The passes: each takes a graph and returns a better one that computes the same.

A pass is a function in a file of its own whose docstring lists its rules. ``PASSES`` is the order, and a pass
may stand in it more than once:

- First the graph is made plain: what is constant is computed, what is unused, repeated or does nothing goes,
  and operands stand in one order. So the passes after it look for one spelling only.
- Then products become Linear layers and attention is recognised, and the rearrangements around both are
  tidied, which leaves new constants to compute and new duplicates to merge.
- Then spelled-out functions are recognised, while their parts still are nodes of their own: the +3 of a
  hard sigmoid would vanish into a bias.
- Then batch normalisation becomes a scale and a shift, and those go into weights. This comes before anything
  is fused into a layer, as weights can only take what directly follows the product.
- Then shortcuts move in front of the branches that they go around, so that the branches take the additions.
- Then layers take their epilogues, normalisations the sums that are left, and the remaining pointwise nodes
  are grouped among themselves. Linear layers are joined after that: only now it is known which of
  them have a residual of their own.
- Last, the weights, final by now, are searched for zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.printer import summary, to_text
from tamis.compiler.ir.verify import verify as verify_graph
from tamis.compiler.passes.clean_transposes import clean_transposes
from tamis.compiler.passes.fold_batchnorm import fold_batchnorm
from tamis.compiler.passes.fold_constants import fold_constants
from tamis.compiler.passes.fold_matmul import fold_matmul
from tamis.compiler.passes.fold_scale import fold_scale
from tamis.compiler.passes.fuse_epilogue import fuse_epilogue
from tamis.compiler.passes.fuse_pointwise import fuse_pointwise
from tamis.compiler.passes.fuse_residual_layernorm import fuse_residual_layernorm
from tamis.compiler.passes.hoist_shortcuts import hoist_shortcuts
from tamis.compiler.passes.merge_duplicates import merge_duplicates
from tamis.compiler.passes.merge_parallel_linear import merge_parallel_linear
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.compiler.passes.order_operands import order_operands
from tamis.compiler.passes.recognise_activation import recognise_activation
from tamis.compiler.passes.recognise_attention import recognise_attention
from tamis.compiler.passes.recognise_layernorm import recognise_layernorm
from tamis.compiler.passes.remove_dead import remove_dead
from tamis.compiler.passes.remove_identities import remove_identities
from tamis.compiler.passes.simplify_gathers import simplify_gathers
from tamis.errors import OutputError

Pass: TypeAlias = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    remove_dead,
    fold_constants,
    simplify_gathers,
    remove_identities,
    merge_duplicates,
    order_operands,
    fold_matmul,
    recognise_attention,
    clean_transposes,
    fold_constants,
    merge_duplicates,
    remove_identities,
    recognise_activation,
    recognise_layernorm,
    fold_batchnorm,
    fold_scale,
    hoist_shortcuts,
    fuse_epilogue,
    fuse_residual_layernorm,
    fuse_pointwise,
    merge_parallel_linear,
    note_sparsity,
)


def run_passes(graph: Graph, *, dump: Path | None = None, verify: bool = False) -> Graph:
    """Run all passes in order.

    Args:
        graph: the graph as imported.
        dump: a directory for ``00-import.txt``, ``01-remove_dead.txt``, ...: the graph after every pass.
        verify: check the graph before the first and after every pass.

    Raises:
        VerificationError: ``verify`` found the graph inconsistent.
        OutputError: ``dump`` cannot be written.
    """
    _film(graph, dump, 0, "import", verify)
    for number, pass_ in enumerate(PASSES, start=1):
        graph = pass_(graph)
        _film(graph, dump, number, pass_.__name__, verify)
    return graph


def _film(graph: Graph, dump: Path | None, number: int, name: str, verify: bool) -> None:
    """Write down and check one state of the graph; written first, so that a bad graph can be looked at."""
    if dump is not None:
        try:
            dump.mkdir(parents=True, exist_ok=True)
            (dump / f"{number:02d}-{name}.txt").write_text(f"{to_text(graph)}{summary(graph)}\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write the graph to {dump}: {error.strerror}",
                remedy="name a directory that can be written",
            ) from error
    if verify:
        verify_graph(graph)


__all__ = ["PASSES", "Pass", "run_passes"]
