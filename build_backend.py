"""PEP 517 backend: setuptools, plus the decision whether to build the native library and for what.

Building the native library needs torch, but torch is not a fixed build requirement. An isolated build would
fetch a second torch, often several GB, for its headers and one library to link, and those of the target
environment serve as well. The backend requires torch only if the target environment has none.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks that are setuptools' unchanged)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

MODES = ("auto", "cuda", "cpu", "none")
COMPILERS = ("c++", "g++", "clang++")
TORCH_MINIMUM = (2, 10)
ZIG = "ziglang==0.17.1"
"""The linker of builds with KRADAGRAD_GLIBC."""

Settings = Mapping[str, str | list[str] | None] | None


@dataclass(frozen=True)
class Decision:
    """The result of KRADAGRAD_BUILD and the compilers of this machine."""

    requested: str
    compiler: tuple[str, ...] | None
    """Command of the C++ compiler; None: install only the Python package."""
    nvcc: tuple[str, ...] | None
    """Command of the CUDA compiler; None: no CUDA kernels."""
    reason: str | None
    """Reason for a missing native library or for missing CUDA kernels; None if nothing is missing."""

    @property
    def native(self) -> str:
        """Devices that the library will support: ``cuda`` (and the CPU), ``cpu`` or ``none``."""
        return "none" if self.compiler is None else "cpu" if self.nvcc is None else "cuda"


def decide() -> Decision:
    """Read KRADAGRAD_BUILD and decide what to build; exit with an error if it cannot be satisfied."""
    requested = os.environ.get("KRADAGRAD_BUILD") or "auto"
    if requested not in MODES:
        stop(f"must be one of {', '.join(MODES)}, got {requested!r}")
    if requested == "none":
        return Decision(requested, None, None, "it was left out by KRADAGRAD_BUILD=none")
    compiler, sought = find_compiler()
    if compiler is None and requested != "auto":
        stop(f"no C++ compiler found (looked for {sought}); install one, or name it in CXX")
    if compiler is None:
        return Decision(requested, None, None, f"no C++ compiler was found (looked for {sought})")
    nvcc = find_nvcc()
    if requested == "cuda" and nvcc is None:
        stop("no nvcc found (looked in CUDA_HOME, on PATH and in /usr/local/cuda); install the CUDA toolkit")
    if requested == "cpu" or (requested == "auto" and not torch_has_cuda()):
        return Decision(requested, compiler, None, None)
    reason = (
        None if nvcc else "no CUDA kernels: no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda"
    )
    return Decision(requested, compiler, nvcc, reason)


def oldest_glibc() -> str | None:
    """Return KRADAGRAD_GLIBC, the oldest glibc with which the library loads; None: that of this machine."""
    named = os.environ.get("KRADAGRAD_GLIBC")
    if not named:
        return None
    if not re.fullmatch(r"2\.\d+", named):
        sys.exit(f"error: KRADAGRAD_GLIBC must be a version of glibc such as 2.28, got {named!r}")
    if sys.platform != "linux":
        sys.exit(
            f"error: KRADAGRAD_GLIBC={named}: only libraries for Linux use glibc, not for {sys.platform}"
        )
    return named


def find_nvcc() -> tuple[str, ...] | None:
    """Return nvcc's command: from CUDA_HOME or CUDA_PATH, on PATH, or in the toolkit's usual place."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home, "bin")) for home in homes if home]
    for place in [*folders, None, "/usr/local/cuda/bin"]:
        nvcc = shutil.which("nvcc", path=place)
        if nvcc:
            return (nvcc,)
    return None


def torch_has_cuda() -> bool:
    """Return True if the target torch is a CUDA build. Read its version file; do not import torch."""
    distribution = find_torch()
    if distribution is None:
        return False
    text = Path(str(distribution.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    return re.search(r"^cuda\b.*=\s*['\"]", text, re.MULTILINE) is not None


def stop(message: str) -> NoReturn:
    """End the build with an error message that names KRADAGRAD_BUILD and its value."""
    sys.exit(f"error: KRADAGRAD_BUILD={os.environ.get('KRADAGRAD_BUILD') or 'auto'}: {message}")


def find_compiler() -> tuple[tuple[str, ...] | None, str]:
    """Return the command of the C++ compiler, or None, and a description of the candidates."""
    named = os.environ.get("CXX")
    candidates = [tuple(shlex.split(named))] if named else [(name,) for name in COMPILERS]
    sought = f"CXX={named}" if named else f"{', '.join(COMPILERS)} on PATH"
    if sys.platform == "win32":
        return None, "none: the native library is not built on Windows"
    return next((command for command in candidates if shutil.which(command[0])), None), sought


def find_torch() -> metadata.Distribution | None:
    """Find torch >= 2.10, importable here or in the target environment of an isolated build.

    Front ends such as pip run an isolated build with the target's interpreter. sysconfig still returns the
    install paths of that interpreter.
    """
    paths = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for distribution in metadata.distributions(name="torch", path=paths):
        version = distribution.version.split(".")
        if (int(version[0]), int(version[1])) >= TORCH_MINIMUM:
            return distribution
    return None


def compiler_version(command: tuple[str, ...]) -> str:
    """Return the line of ``<compiler> --version`` that has the version, or the command if no line has one."""
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    lines = (line for line in result.stdout.splitlines() if re.search(r"\d\.\d", line))
    return next(lines, shlex.join(command))


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return setuptools' requirements and, to compile, ninja, a linker, and torch if the target lacks it."""
    requirements: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if decide().compiler:
        requirements.append("ninja")
        if oldest_glibc():
            requirements.append(ZIG)
        if find_torch() is None:
            requirements.append(f"torch>={'.'.join(map(str, TORCH_MINIMUM))}")
    return requirements


get_requires_for_build_editable = get_requires_for_build_wheel
