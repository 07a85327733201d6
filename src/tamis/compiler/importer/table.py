"""All ONNX operators that Tamis imports: domain, operator, function."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tamis.compiler.importer.attention import ATTENTION
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.convolution import CONVOLUTION
from tamis.compiler.importer.elementwise import ELEMENTWISE
from tamis.compiler.importer.generation import GENERATION
from tamis.compiler.importer.indexing import INDEXING
from tamis.compiler.importer.integer import INTEGER
from tamis.compiler.importer.linear import LINEAR
from tamis.compiler.importer.microsoft import MICROSOFT, SIMPLIFIED
from tamis.compiler.importer.normalization import NORMALIZATION
from tamis.compiler.importer.pooling import POOLING
from tamis.compiler.importer.quantization import QUANTIZATION
from tamis.compiler.importer.reduction import REDUCTION
from tamis.compiler.importer.resize import RESIZE
from tamis.compiler.importer.shape import SHAPE

ONNX: Mapping[str, Convert] = MappingProxyType(
    {
        **ATTENTION,
        **CONVOLUTION,
        **ELEMENTWISE,
        **GENERATION,
        **INDEXING,
        **INTEGER,
        **LINEAR,
        **NORMALIZATION,
        **POOLING,
        **QUANTIZATION,
        **REDUCTION,
        **RESIZE,
        **SHAPE,
        **SIMPLIFIED,  # ONNX Runtime writes it without its domain
    }
)

OPERATORS: Mapping[str, Mapping[str, Convert]] = MappingProxyType({"": ONNX, "com.microsoft": MICROSOFT})
