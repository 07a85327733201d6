"""Python processes beside this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def child_environment() -> dict[str, str]:
    """This process's variables for a Python process that shall find the modules that this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(place) or str(Path.cwd()) for place in sys.path)}
