"""Structured sparsity for torch models: prune, hold while training, check, export."""

from __future__ import annotations

from tamis.sparsity.check import LayerCheck, check_module, check_state_dict
from tamis.sparsity.check_onnx import check_onnx
from tamis.sparsity.export import ExportMismatch, ExportReport, SparsityLost, export_onnx
from tamis.sparsity.hold import PrunedLayer, PruneReport, finalize
from tamis.sparsity.masks import LayerChoice, magnitude_mask, nm_mask, prunable
from tamis.sparsity.permutation import PermutationReport, PermutedLayer, permute_channels
from tamis.sparsity.pruning import SparseGPT, apply_masks, prune
from tamis.sparsity.scores import magnitude_scores, taylor_scores, wanda_scores

__all__ = [
    "ExportMismatch",
    "ExportReport",
    "LayerCheck",
    "LayerChoice",
    "PermutationReport",
    "PermutedLayer",
    "PruneReport",
    "PrunedLayer",
    "SparseGPT",
    "SparsityLost",
    "apply_masks",
    "check_module",
    "check_onnx",
    "check_state_dict",
    "export_onnx",
    "finalize",
    "magnitude_mask",
    "magnitude_scores",
    "nm_mask",
    "permute_channels",
    "prunable",
    "prune",
    "taylor_scores",
    "wanda_scores",
]
