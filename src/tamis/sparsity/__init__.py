"""Structured sparsity for torch models: prune, hold while training, check, export."""

from __future__ import annotations

from tamis.sparsity.check import LayerCheck, check_module, check_state_dict
from tamis.sparsity.check_onnx import check_onnx
from tamis.sparsity.export import ExportMismatch, ExportReport, SparsityLost, export_onnx
from tamis.sparsity.hold import PrunedLayer, PruneReport, finalize, prune
from tamis.sparsity.masks import LayerChoice, magnitude_mask, nm_mask, prunable

__all__ = [
    "ExportMismatch",
    "ExportReport",
    "LayerCheck",
    "LayerChoice",
    "PruneReport",
    "PrunedLayer",
    "SparsityLost",
    "check_module",
    "check_onnx",
    "check_state_dict",
    "export_onnx",
    "finalize",
    "magnitude_mask",
    "nm_mask",
    "prunable",
    "prune",
]
