"""ONNX models to graphs: one small function for each operator, grouped by family."""

from __future__ import annotations

from tamis.compiler.importer.onnx_model import import_onnx

__all__ = ["import_onnx"]
