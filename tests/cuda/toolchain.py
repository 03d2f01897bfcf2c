"""Compilation for tests of the CUDA kernels: PTX from csrc/cuda/kernels, and the launch plans for Python.

Results are kept in build/, so that most runs compile nothing.
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

__all__ = ["ROOT", "cache_folder", "ptx"]  # and names that tests import from here

KERNELS = ROOT / "csrc/cuda/kernels"
PLANS = ROOT / "csrc/cuda/plan"
BUILD = ROOT / "build/cuda-tests"

PTX_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "--ptx", "-arch=compute_80"]
"""Flags of build_native.py: all machine code in the library is made from this PTX."""
PLAN_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden"]


def give_up(reason: str) -> NoReturn:
    """Skip a test that lacks a tool, or fail it if KRADAGRAD_REQUIRE_NVCC is set."""
    if os.environ.get("KRADAGRAD_REQUIRE_NVCC"):
        pytest.fail(f"KRADAGRAD_REQUIRE_NVCC is set: {reason}")
    pytest.skip(reason)


def require_nvcc() -> str:
    """Return nvcc's path, or give up."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        give_up("no nvcc, on PATH or in /usr/local/cuda")
    return nvcc


@functools.cache
def nvcc_to_ptx(*flags: str) -> ninja_rules.Compiler:
    """Return nvcc as a compiler of PTX."""
    nvcc = require_nvcc()
    version = compiler_version((nvcc,))
    return ninja_rules.Compiler("PTX", [nvcc, *flags], [], version, build_native.NVCC_MEMORY)


def compile_ptx(folder: Path, compiler: ninja_rules.Compiler, source: Path) -> str:
    """Return the PTX that a compiler makes of a source, in a separate build."""
    build = ninja_rules.Build(folder)
    target = build.compile(compiler, source.relative_to(ROOT), f"{source.stem}.ptx")
    build.run()
    return (ROOT / target).read_text()


def kernel_headers() -> list[Path]:
    """Return the headers that every kernel may include."""
    shared = [ROOT / name for name in build_native.KERNELS_INCLUDE]
    return sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h"), *shared])


@functools.cache
def ptx(stem: str) -> str:
    """Return the PTX of csrc/cuda/kernels/<stem>.cu."""
    return compile_ptx(BUILD / stem, nvcc_to_ptx(*PTX_FLAGS), KERNELS / f"{stem}.cu")


@functools.cache
def plans() -> ModuleType:
    """Return the plans of csrc/cuda/plan as a Python module."""
    sources = [Path(__file__).parent / "bindings.cpp", *sorted(PLANS.glob("*.cpp"))]
    return build_module("_plans", sources, [*PLAN_FLAGS, "-Icsrc/cuda"], BUILD / "plans")
