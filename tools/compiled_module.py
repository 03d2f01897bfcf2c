"""Compilation of C++ Python modules for tests and tools, by the same rules as the native library."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import compile_cached  # noqa: E402
import ninja_rules  # noqa: E402  (on the path by the line above)
from build_backend import compiler_version  # noqa: E402
from compile_cached import cache_folder  # noqa: E402

__all__ = ["ROOT", "build_module", "cache_folder", "compile_cached", "ninja_rules"]


def build_module(
    name: str, sources: Sequence[Path], flags: Sequence[str], folder: Path, version: str = ""
) -> ModuleType:
    """Compile the changed sources of a module, link it, and import it.

    Args:
        flags: the compiler's flags, besides the folders of Python's and pybind11's headers.
        folder: where the module is built.
        version: text that changes whenever the compiled output may change, besides the compiler's version.
    """
    command = shlex.split(os.environ.get("CXX", "c++"))
    folders = (sysconfig.get_path("include"), pybind11.get_include())
    system = [word for path in folders for word in ("-isystem", path)]
    version = f"{compiler_version(tuple(command))} {sys.version} {pybind11.__version__} {version}"
    compiler = ninja_rules.Compiler("CXX", [*command, *flags, "-c"], system, version, ninja_rules.GIB)
    build = ninja_rules.Build(folder)
    relative = [path.resolve().relative_to(ROOT) for path in sources]
    objects = [build.compile(compiler, path, f"{path.name}.o") for path in relative]
    library = str(ROOT / build.link(command, objects, [], f"{name}.so"))
    build.run()
    loader = importlib.machinery.ExtensionFileLoader(name, library)
    spec = importlib.machinery.ModuleSpec(name, loader, origin=library)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
