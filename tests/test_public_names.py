from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tamis
from tamis.errors import ConfigError

SOURCES = Path(tamis.__file__).resolve().parent
PACKAGES = sorted(
    ".".join(path.relative_to(SOURCES.parent).parts[:-1])
    for path in SOURCES.glob("**/__init__.py")
    if "__all__" in path.read_text()
)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tamis.nonsense  # noqa: B018


def test_importing_tamis_loads_nothing_heavy() -> None:
    program = "import sys, tamis; print([m for m in ('torch', 'onnx', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_and_explaining_an_engine_loads_no_torch() -> None:
    program = "import sys, tamis, tamis.report; tamis.read_engine; tamis.Engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_build_option_is_named() -> None:
    with pytest.raises(ConfigError, match="no build option 'sparcity'"):
        tamis.build("model.onnx", sparcity="off")
    with pytest.raises(ConfigError, match=r"no build option 'budget'\. Did you mean 'budget_seconds'"):
        tamis.build("model.onnx", budget=3.0)


def test_the_version_is_that_of_the_project() -> None:
    project = (SOURCES.parent.parent / "pyproject.toml").read_text()
    assert f'version = "{tamis.__version__}"' in project
