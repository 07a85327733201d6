"""The import rule, and a few rules of size and form, checked on the parsed sources.

Imports inside functions count too. A new package must be put into ``MAY_SEE`` before it can be used.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src"
LONGEST_FILE = 400

# What each package may import from Tamis, besides itself. ``OPEN_TO_ALL`` is just that.
OPEN_TO_ALL = {"tamis.errors", "tamis.files"}
COMPILER = {"tamis.compiler.config", "tamis.compiler.ir"}
DATA = {"tamis.formats", "tamis.engine"}
MAY_SEE: dict[str, set[str]] = {
    "tamis": {
        *("tamis.compiler", "tamis.compiler.config", "tamis.engine", "tamis.onnx_files"),
        *("tamis.report", "tamis.runtime", "tamis.sparsity"),
    },
    "tamis.__main__": {"tamis.cli"},
    "tamis.errors": set(),
    "tamis.files": {"tamis.errors"},
    "tamis.formats": set(),
    "tamis.onnx_files": {"tamis.formats"},
    "tamis.sparsity": {"tamis.formats", "tamis.onnx_files"},
    "tamis.engine": {"tamis.formats"},
    "tamis.kernels": {"tamis.formats"},
    "tamis.devices": DATA | {"tamis.kernels"},
    "tamis.runtime": DATA | {"tamis.devices"},
    "tamis.report": DATA | {"tamis.runtime", "tamis.sparsity"},
    "tamis.compiler.config": {"tamis.formats"},
    "tamis.compiler.ir": {"tamis.formats"},
    "tamis.compiler.importer": COMPILER | {"tamis.formats", "tamis.onnx_files"},
    "tamis.compiler.passes": COMPILER | {"tamis.formats"},
    "tamis.compiler.tactics": COMPILER | DATA | {"tamis.kernels", "tamis.devices"},
    "tamis.compiler.tuner": COMPILER | DATA | {"tamis.compiler.tactics", "tamis.devices"},
    "tamis.compiler.planner": COMPILER
    | DATA
    | {"tamis.compiler.tactics", "tamis.compiler.tuner", "tamis.devices", "tamis.runtime"},
    "tamis.compiler": COMPILER
    | DATA
    | {
        "tamis.compiler.importer",
        "tamis.compiler.passes",
        "tamis.compiler.planner",
        "tamis.compiler.tactics",
        "tamis.compiler.tuner",
        "tamis.devices",
        "tamis.runtime",
        "tamis.onnx_files",  # where the names in a plan come from
        "tamis.sparsity",  # whose plans it measures; it sees nothing of the compiler, so this stays an arrow
    },
    "tamis.cli": {
        "tamis",
        "tamis.compiler",
        "tamis.compiler.config",
        "tamis.devices",
        "tamis.engine",
        "tamis.formats",
        "tamis.kernels",
        "tamis.onnx_files",
        "tamis.report",
        "tamis.runtime",
        "tamis.sparsity",
    },
}
# The command line is built on what others can use too: packages, not their inner modules.
PUBLIC_ONLY = ("tamis.cli", "tamis")
WITHOUT_TORCH = (
    "tamis.errors",
    "tamis.files",
    "tamis.formats",
    "tamis.onnx_files",
    "tamis.compiler.ir",
    "tamis.compiler.passes",
    "tamis.engine",
)
WITHOUT_ONNX = ("tamis.runtime", "tamis.engine", "tamis.formats", "tamis.devices", "tamis.report")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCES.glob("tamis/**/*.py"))}


def package_of(module: str) -> str:
    """The longest name in ``MAY_SEE`` that a module lies in; only its own files lie in ``tamis``."""
    names = [name for name in MAY_SEE if module == name or module.startswith(f"{name}.")]
    best = max(names, key=len, default="")
    if best == "tamis" and module != "tamis":
        return module  # a new package: not in the table
    if best == "tamis.compiler" and module != "tamis.compiler" and not FILES[module].match("compiler/*.py"):
        return module
    return best


def imports_of(module: str) -> list[tuple[int, str]]:
    """The modules that a module imports, with lines: ``from a import b`` is ``a.b`` when that is a module."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            source = node.module or ""
            if source == "tamis" and [alias.name for alias in node.names] == ["__version__"]:
                continue  # open to all: it stands before everything else and needs nothing
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.append((node.lineno, inner if inner in FILES else source))
    return found


def own_imports(module: str) -> list[tuple[int, str]]:
    return [(line, name) for line, name in imports_of(module) if name == "tamis" or name.startswith("tamis.")]


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_rule(module: str) -> None:
    package = package_of(module)
    assert package in MAY_SEE, f"{module} lies in no package of the table; add it to MAY_SEE"
    allowed = MAY_SEE[package] | {package, *OPEN_TO_ALL}
    for line, name in own_imports(module):
        assert name in FILES, f"{module}:{line} imports {name}, which does not exist"
        target = package_of(name)
        assert target in allowed, f"{module}:{line}: {package} may not see {target}"
        if package in PUBLIC_ONLY and target not in {package, *OPEN_TO_ALL}:
            public = name == target or FILES[name].name == "__init__.py"
            assert public, f"{module}:{line}: import from {target}, not from its inner module {name}"


def test_the_rule_itself_has_no_cycle() -> None:
    done: set[str] = set()

    def visit(package: str, path: tuple[str, ...]) -> None:
        assert package not in path, f"cycle: {' -> '.join((*path, package))}"
        if package not in done:
            for other in MAY_SEE[package]:
                visit(other, (*path, package))
            done.add(package)

    for package in MAY_SEE:
        visit(package, ())


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = {module: {name for _, name in own_imports(module) if name in FILES} for module in FILES}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"cycle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in state:
            state[module] = 1
            for other in sorted(edges[module] - {module}):
                visit(other, (*path, module))
            state[module] = 2

    for module in FILES:
        visit(module, ())


@pytest.mark.parametrize(("packages", "library"), [(WITHOUT_TORCH, "torch"), (WITHOUT_ONNX, "onnx")])
def test_libraries_that_stay_out(packages: tuple[str, ...], library: str) -> None:
    banned = {"torch": {"torch"}, "onnx": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"}}[library]
    for module in FILES:
        if module.startswith(packages):
            for line, name in imports_of(module):
                assert name.partition(".")[0] not in banned, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", FILES)
def test_files_are_small_and_named_for_what_they_do(module: str) -> None:
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{module} has {lines} lines; split it"
    assert not {"utils", "util", "helpers", "misc", "common"} & set(module.split(".")), module


def test_the_sources_were_found() -> None:
    assert {"tamis", "tamis.errors", "tamis.engine.file", "tamis.cli.main"} <= FILES.keys()
