"""Real models at real sizes, with random weights from fixed seeds: nothing is downloaded.

Put the folder above on the module path and `import models`; `python -m models --help` exports them.
"""

from __future__ import annotations

from models.catalogue import MODELS, SMALL, get
from models.exporting import build, export
from models.spec import ModelSpec

__all__ = ["MODELS", "SMALL", "ModelSpec", "build", "export", "get"]
