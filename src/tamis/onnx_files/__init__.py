"""ONNX files as the importer and the sparsity toolkit read them: parsed, with external data mapped into memory."""

from __future__ import annotations

from tamis.onnx_files.load import Source, files_of, load_model
from tamis.onnx_files.tensors import bodies_of, external_files, raw_bytes, sparse_to_array, stored_tensors, to_array

__all__ = [
    "Source",
    "bodies_of",
    "external_files",
    "files_of",
    "load_model",
    "raw_bytes",
    "sparse_to_array",
    "stored_tensors",
    "to_array",
]
