"""Compiles what tests of the CUDA kernels run: PTX from csrc/cuda/kernels, and the launch plans for Python.

Results lie in build/, where most runs compile nothing.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from compiled_module import ROOT, build_module, ninja_rules

import build_native
from build_backend import compiler_version
from compile_cached import cache_folder

__all__ = ["ROOT", "cache_folder", "ptx"]  # and what tests find through here

KERNELS = ROOT / "csrc/cuda/kernels"
PLANS = ROOT / "csrc/cuda/plan"
BUILD = ROOT / "build/cuda-tests"

PTX_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "--ptx", "-arch=compute_80"]
"""As build_native.py has them: all machine code in the library is made from this PTX."""
PLAN_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden"]


def give_up(reason: str) -> NoReturn:
    """Skip a test that lacks a tool, unless KRADAGRAD_REQUIRE_NVCC says that it must not."""
    if os.environ.get("KRADAGRAD_REQUIRE_NVCC"):
        pytest.fail(f"KRADAGRAD_REQUIRE_NVCC is set: {reason}")
    pytest.skip(reason)


def require_nvcc() -> str:
    """nvcc's path."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        give_up("no nvcc, on PATH or in /usr/local/cuda")
    return nvcc


@functools.cache
def nvcc_to_ptx(*flags: str) -> ninja_rules.Compiler:
    """nvcc as a compiler of PTX."""
    nvcc = require_nvcc()
    version = compiler_version((nvcc,))
    return ninja_rules.Compiler("PTX", [nvcc, *flags], [], version, build_native.NVCC_MEMORY)


def compile_ptx(folder: Path, compiler: ninja_rules.Compiler, source: Path) -> str:
    """The PTX that a compiler makes of a source, in a build of its own."""
    build = ninja_rules.Build(folder)
    target = build.compile(compiler, source.relative_to(ROOT), f"{source.stem}.ptx")
    build.run()
    return (ROOT / target).read_text()


def kernel_headers() -> list[Path]:
    """Headers that every kernel may include."""
    shared = [ROOT / name for name in build_native.KERNELS_INCLUDE]
    return sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h"), *shared])


@functools.cache
def ptx(stem: str) -> str:
    """The PTX of csrc/cuda/kernels/<stem>.cu."""
    return compile_ptx(BUILD / stem, nvcc_to_ptx(*PTX_FLAGS), KERNELS / f"{stem}.cu")


@functools.cache
def plans() -> ModuleType:
    """The plans of csrc/cuda/plan as a module."""
    sources = [Path(__file__).parent / "bindings.cpp", *sorted(PLANS.glob("*.cpp"))]
    return build_module("_plans", sources, [*PLAN_FLAGS, "-Icsrc/cuda"], BUILD / "plans")
