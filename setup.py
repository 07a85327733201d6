"""Builds the CPU kernels' shared library beside their sources; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_BUILD_SCRIPT = Path(__file__).parent / "src" / "tamis" / "kernels" / "cpu" / "build.py"
_spec = importlib.util.spec_from_file_location("tamis_kernels_build", _BUILD_SCRIPT)
kernels_build = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = kernels_build
_spec.loader.exec_module(kernels_build)


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / kernels_build.LIBRARY_NAME)

    def build_extension(self, ext: Extension) -> None:
        try:
            kernels_build.compile_library(Path(self.get_ext_fullpath(ext.name)).resolve())
        except kernels_build.CompilerError as error:
            raise SystemExit(f"error: {error}") from error


class AnyPythonWheel(bdist_wheel):
    """The library is loaded through its C interface, so one wheel serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("tamis.kernels.cpu.libtamis_cpu", sources=[])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
)
