"""The documentation: links resolve, marked code runs, generated parts are up to date.

Blocks that start with ```python run or ```console run are run, those of a page in order and in one folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tamis.cli.main import COMMANDS
from tamis.cli.reference import reference
from tamis.errors import TamisError

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "examples", "benchmarks", "src")
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(p for f in FOLDERS for p in ROOT.glob(f"{f}/**/*.md"))]
    if ".venv" not in path.parts
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCED = re.compile(r"^```.*?^```\n?", re.DOTALL | re.MULTILINE)
RUNNABLE = re.compile(r"^```(python|console) run\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}"


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in LINK.findall(prose(page))
    }
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and "design" not in page.parts:
            assert page in linked, f"nothing links to {page.relative_to(ROOT)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUNNABLE.search(page.read_text())], ids=lambda p: p.name)
def test_code_runs(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tamis").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tamis.cli "$@"\n')
    (folder / "tamis").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    for language, block in RUNNABLE.findall(page.read_text()):
        command = [sys.executable, "-c", block] if language == "python" else ["sh", "-ec", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_the_command_line_page_is_up_to_date() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == reference(), "run 'make docs'"


def test_the_tables_are_up_to_date() -> None:
    tables = load("benchmarks/tables.py")
    for page in tables.documents():
        assert tables.rendered(page.read_text()) == page.read_text(), f"{page}: run 'make docs'"


def test_tables_are_made_from_results(tmp_path: Path) -> None:
    tables = load("benchmarks/tables.py")
    row = {"bench": "cpu-models", "case": "net-b1", "precision": "float32", "sparsity": "dense", "note": ""}
    rows = [
        {**row, "impl": "openvino", "median_us": 3000.0, "max_rel_error": 0.0},
        {**row, "impl": "onnxruntime", "median_us": 2500.0, "max_rel_error": 0.0},
        {**row, "impl": "torch.compile", "median_us": 1.0, "max_rel_error": 1e30},
        {**row, "impl": "tamis", "median_us": 1250.0, "max_rel_error": 1e-6, "sparsity": "2:4"},
    ]
    meta = {"machine": {"cpu": "a cpu", "cores": 2}, "versions": {"torch": "2"}, "date": "2000-01-01"}
    (tmp_path / "cpu-models-x.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    text = tables.rendered("a\n<!-- table:cpus -->\nold\n<!-- /table:cpus -->\nb\n", tmp_path)
    assert "| net-b1 | float32 | 2.5 ms | 3 ms |  | 1.25 ms | 2:4 | 2.00 |" in text
    assert "old" not in text and text.startswith("a\n") and text.endswith("b\n")
    assert tables.rendered(text, tmp_path) == text
    in_readme = "<!-- table:cpu -->\n<!-- /table:cpu -->\n"
    assert "No results yet" in tables.rendered(in_readme, tmp_path), "of other machines alone"
    (tmp_path / "cpu-models-x.json").rename(tmp_path / f"cpu-models-{tables.IN_README[0]}.json")
    assert "| net-b1 | float32" in tables.rendered(in_readme, tmp_path)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_exit_codes_are_those_of_the_errors() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert documented == {error.__name__: error.exit_code for error in TamisError.__subclasses__()}


def test_every_command_is_in_the_readme_or_the_start_page() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/start.md").read_text()
    for name, _ in COMMANDS:
        assert name in ("inspect", "run", "demo") or f"tamis {name}" in text, name


def test_nothing_names_a_path_of_a_developers_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0 or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"/(home|root|work|Users)/\w")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".json"} and path.is_file():
            found = forbidden.search(path.read_text())
            assert found is None, f"{name} names {found}"


def load(name: str) -> ModuleType:
    """A script of the repository as a module."""
    path = ROOT / name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # scripts import their siblings
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
