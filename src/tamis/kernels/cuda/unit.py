"""A translation unit: what is compiled, and all the text that it depends on."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def sources() -> tuple[str, ...]:
    """The names of all kernel sources."""
    return tuple(sorted(file.name for file in FOLDER.glob("*.cu")))


def translation_unit(source: str, defines: Mapping[str, str | int | float]) -> str:
    """The text that is compiled: a source of this folder behind its constants."""
    lines = [f"#define {name} {value}" for name, value in sorted(defines.items())]
    return "\n".join([*lines, f'#include "{source}"', ""])


def whole_text(text: str) -> str:
    """A translation unit with every file that it may include, by whatever way: equal texts give equal binaries.

    Conditions are not evaluated, so a header may be listed that this unit does not read. Files that are not there are
    named only: the emulations of the tests.
    """
    parts, found = list[str](), set[Path]()
    waiting = [(FOLDER, name) for name in _INCLUDE.findall(text)]
    while waiting:
        near, name = waiting.pop()
        file = next((place / name for place in (near, FOLDER) if (place / name).is_file()), None)
        if file is None:
            parts.append(f"// {name}: not there")
        elif file not in found:
            found.add(file)
            status = file.stat()
            content, included = _read(file, status.st_mtime_ns, status.st_size)
            parts.append(f"// {name}\n{content}")
            waiting += [(file.parent, inner) for inner in included]
    return "\n".join([text, *sorted(parts)])


@functools.lru_cache(maxsize=256)
def _read(file: Path, modified_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """A source and what it includes. A file that was changed is read again."""
    content = file.read_text(encoding="utf-8")
    return content, tuple(_INCLUDE.findall(content))
