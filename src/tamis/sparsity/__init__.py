"""Structured sparsity for torch models: prune, hold while training, check, export."""

from __future__ import annotations

from tamis.sparsity.callbacks import lightning_callback, trainer_callback
from tamis.sparsity.channel_costs import LayerCost
from tamis.sparsity.channel_report import ChannelReport, PrunedGroup, Removal
from tamis.sparsity.channel_rounding import useful_multiple
from tamis.sparsity.channel_shapes import load_channels, save_channels
from tamis.sparsity.channels import prune_channels
from tamis.sparsity.check import LayerCheck, check_module, check_state_dict
from tamis.sparsity.check_file import FileCheck, check_file
from tamis.sparsity.check_onnx import check_onnx
from tamis.sparsity.export import ExportMismatch, ExportReport, SparsityLost, export_onnx
from tamis.sparsity.hold import PrunedLayer, PruneReport, finalize
from tamis.sparsity.layer_names import named, require_named
from tamis.sparsity.masks import LayerChoice, magnitude_mask, nm_mask, prunable
from tamis.sparsity.permutation import PermutationReport, PermutedLayer, permute_channels
from tamis.sparsity.progressive import ChannelStep, prune_progressively
from tamis.sparsity.prune_onnx import OnnxPrunedLayer, OnnxPruneReport, prune_onnx
from tamis.sparsity.pruning import SparseGPT, apply_masks, prune
from tamis.sparsity.schedule import Schedule
from tamis.sparsity.scores import magnitude_scores, taylor_scores, wanda_scores
from tamis.sparsity.training import SRSTE, SparseTraining, bake_state_dict

__all__ = [
    "ChannelReport",
    "ChannelStep",
    "ExportMismatch",
    "ExportReport",
    "FileCheck",
    "LayerCheck",
    "LayerChoice",
    "LayerCost",
    "OnnxPruneReport",
    "OnnxPrunedLayer",
    "PermutationReport",
    "PermutedLayer",
    "PruneReport",
    "PrunedGroup",
    "PrunedLayer",
    "Removal",
    "SRSTE",
    "Schedule",
    "SparseGPT",
    "SparseTraining",
    "SparsityLost",
    "apply_masks",
    "bake_state_dict",
    "check_file",
    "check_module",
    "check_onnx",
    "check_state_dict",
    "export_onnx",
    "finalize",
    "lightning_callback",
    "load_channels",
    "magnitude_mask",
    "magnitude_scores",
    "named",
    "nm_mask",
    "permute_channels",
    "prunable",
    "prune",
    "prune_channels",
    "prune_onnx",
    "prune_progressively",
    "require_named",
    "save_channels",
    "taylor_scores",
    "trainer_callback",
    "useful_multiple",
    "wanda_scores",
]
