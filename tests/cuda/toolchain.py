"""Compiles what tests of the CUDA kernels run: PTX from csrc/cuda/kernels, and the launch plans for Python.

Results lie in build/, named by a hash of all that they depend on, so that most runs compile nothing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc/cuda/kernels"
PLANS = ROOT / "csrc/cuda/plan"
BUILD = ROOT / "build/cuda-tests"

PTX_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "--ptx", "-arch=compute_80"]
"""As build_native.py has them: all machine code in the library is made from this PTX."""
PLAN_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-shared"]


def give_up(reason: str) -> NoReturn:
    """Skip a test that lacks a tool, unless KRADAGRAD_REQUIRE_NVCC says that it must not."""
    if os.environ.get("KRADAGRAD_REQUIRE_NVCC"):
        pytest.fail(f"KRADAGRAD_REQUIRE_NVCC is set: {reason}")
    pytest.skip(reason)


def require_nvcc() -> str:
    """nvcc's path."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        give_up("no nvcc, and no compiled PTX of these sources in build/")
    return nvcc


def digest(sources: list[Path], *facts: str) -> str:
    """A hash of files' contents and of facts."""
    state = hashlib.sha256(" ".join(facts).encode())
    for source in sources:
        state.update(source.read_bytes())
    return state.hexdigest()[:16]


def compile_once(target: Path, command: list[str]) -> None:
    """Run a compiler that writes to its last argument, unless the target is there; one process at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        partial = target.with_suffix(f".partial{target.suffix}")
        done = subprocess.run([*command, str(partial)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        partial.replace(target)


def kernel_headers() -> list[Path]:
    """Headers that every kernel may include."""
    return sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h")])


@functools.cache
def ptx(stem: str) -> str:
    """The PTX of csrc/cuda/kernels/<stem>.cu."""
    source = KERNELS / f"{stem}.cu"
    target = BUILD / f"{stem}.{digest([source, *kernel_headers()], *PTX_FLAGS)}.ptx"
    if not target.exists():
        compile_once(target, [require_nvcc(), *PTX_FLAGS, str(source), "-o"])
    return target.read_text()


@functools.cache
def plans() -> ModuleType:
    """The plans of csrc/cuda/plan as a module."""
    sources = [Path(__file__).parent / "bindings.cpp", *sorted(PLANS.glob("*.cpp"))]
    headers = [*sorted(PLANS.glob("*.h")), *kernel_headers()]
    target = BUILD / f"_plans.{digest([*sources, *headers], sys.version, pybind11.__version__)}.so"
    includes = [
        f"-I{path}" for path in (ROOT / "csrc/cuda", sysconfig.get_path("include"), pybind11.get_include())
    ]
    compiler = os.environ.get("CXX", "c++")
    compile_once(target, [compiler, *PLAN_FLAGS, *includes, *map(str, sources), "-o"])
    spec = importlib.util.spec_from_file_location("_plans", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
