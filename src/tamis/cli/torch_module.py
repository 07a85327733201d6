"""A torch module by its import string, ``package.module:name``. Runs the code that it names."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.errors import InvalidModel, first_line

if TYPE_CHECKING:
    from torch import nn

_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_REMEDY = "name a torch.nn.Module, or a function without arguments that makes one"


def is_import_string(text: str) -> bool:
    """Whether a text is of the form ``package.module:name``."""
    return _IMPORT_STRING.fullmatch(text) is not None


def import_module(text: str) -> nn.Module:
    """Import the module or factory that ``text`` names; the current folder is searched first.

    What the code prints goes to stderr. Raises ``InvalidModel`` when it fails, or gives no module.
    """
    from torch import nn

    package, _, name = text.partition(":")
    with redirect_stdout(sys.stderr):
        found = _run(text, package, name)
    if not isinstance(found, nn.Module):
        raise InvalidModel(f"{text} gives a {type(found).__name__}, not a torch module", remedy=_REMEDY)
    return found


def _run(text: str, package: str, name: str) -> object:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(package)
        for part in name.split("."):
            found = getattr(found, part)
        return found() if inspect.isroutine(found) or inspect.isclass(found) else found
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InvalidModel(
            f"{text} cannot be made: {type(error).__name__}: {first_line(error)}",
            remedy=f"{_REMEDY}; --traceback shows where it failed",
        ) from error
    finally:
        with suppress(ValueError):  # the code may have changed the path itself
            sys.path.remove(here)
