"""Structured sparsity for torch models: prune, hold while training, check, export."""

from __future__ import annotations

from tamis.sparsity.callbacks import lightning_callback, trainer_callback
from tamis.sparsity.channel_costs import LayerCost
from tamis.sparsity.channel_report import ChannelReport, PrunedGroup, Removal
from tamis.sparsity.channel_rounding import useful_multiple
from tamis.sparsity.channel_shapes import load_channels, save_channels
from tamis.sparsity.channels import prune_channels
from tamis.sparsity.check import LayerCheck, check_module
from tamis.sparsity.check_file import FileCheck, check_file
from tamis.sparsity.check_onnx import check_onnx
from tamis.sparsity.check_state import check_state_dict
from tamis.sparsity.export import ExportMismatch, ExportReport, SparsityLost, export_onnx
from tamis.sparsity.hold import PrunedLayer, PruneReport, finalize
from tamis.sparsity.layer_names import named, require_named
from tamis.sparsity.masks import LayerChoice, magnitude_mask, nm_mask, prunable
from tamis.sparsity.permutation import PermutationReport, PermutedLayer, permute_channels
from tamis.sparsity.progressive import ChannelStep, prune_progressively
from tamis.sparsity.prune_onnx import OnnxPruneReport, prune_onnx
from tamis.sparsity.prune_onnx_group import OnnxPrunedLayer
from tamis.sparsity.prune_plan import (
    PlannedLayer,
    PrunePlan,
    plan_data,
    plan_for_time,
    plan_from_json,
    plan_json,
    plan_within,
)
from tamis.sparsity.pruning import SparseGPT, apply_masks, prune
from tamis.sparsity.schedule import Schedule
from tamis.sparsity.scores import magnitude_scores, taylor_scores, wanda_scores
from tamis.sparsity.sensitivity import measured_loss, sensitivity
from tamis.sparsity.sensitivity_report import (
    LayerTime,
    MeasuredTimes,
    Sensitivity,
    SensitivityReport,
    Skipped,
    loss_of_db,
    loss_text,
    report_data,
    report_from_json,
    report_json,
    sqnr_db,
)
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
    "LayerTime",
    "MeasuredTimes",
    "OnnxPruneReport",
    "OnnxPrunedLayer",
    "PermutationReport",
    "PermutedLayer",
    "PlannedLayer",
    "PrunePlan",
    "PruneReport",
    "PrunedGroup",
    "PrunedLayer",
    "Removal",
    "SRSTE",
    "Schedule",
    "Sensitivity",
    "SensitivityReport",
    "Skipped",
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
    "loss_of_db",
    "loss_text",
    "magnitude_mask",
    "magnitude_scores",
    "measured_loss",
    "named",
    "nm_mask",
    "permute_channels",
    "plan_data",
    "plan_for_time",
    "plan_from_json",
    "plan_json",
    "plan_within",
    "prunable",
    "prune",
    "prune_channels",
    "prune_onnx",
    "prune_progressively",
    "report_data",
    "report_from_json",
    "report_json",
    "require_named",
    "save_channels",
    "sensitivity",
    "sqnr_db",
    "taylor_scores",
    "trainer_callback",
    "useful_multiple",
    "wanda_scores",
]
