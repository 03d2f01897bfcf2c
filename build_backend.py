"""PEP 517 backend: setuptools, and what it shall build.

torch is needed to build the native library but is no fixed build requirement: an isolated build would fetch
a second torch, often several GB, although nothing but its headers and one library to link is used, and those
of the environment that is installed into serve. So torch is required only where that environment has none.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import NoReturn

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks of the backend, as setuptools has them)
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

Settings = Mapping[str, str | list[str] | None] | None


@dataclass(frozen=True)
class Decision:
    """What KRADAGRAD_BUILD and this machine amount to."""

    requested: str
    compiler: tuple[str, ...] | None
    """Command of the C++ compiler; None: install the Python package alone."""
    reason: str | None
    """Why there is no native library; None where there is one."""


def decide() -> Decision:
    """Read KRADAGRAD_BUILD; exits with an error when it cannot be met."""
    requested = os.environ.get("KRADAGRAD_BUILD") or "auto"
    if requested not in MODES:
        stop(f"must be one of {', '.join(MODES)}, got {requested!r}")
    if requested == "cuda":
        stop("this source tree has no CUDA sources (csrc/cuda); use KRADAGRAD_BUILD=cpu or auto")
    if requested == "none":
        return Decision(requested, None, "it was left out by KRADAGRAD_BUILD=none")
    compiler, sought = find_compiler()
    if compiler is None and requested == "cpu":
        stop(f"no C++ compiler found (looked for {sought}); install one, or name it in CXX")
    reason = None if compiler else f"no C++ compiler was found (looked for {sought})"
    return Decision(requested, compiler, reason)


def stop(message: str) -> NoReturn:
    """End the build with a message that names the variable in charge."""
    sys.exit(f"error: KRADAGRAD_BUILD={os.environ.get('KRADAGRAD_BUILD') or 'auto'}: {message}")


def find_compiler() -> tuple[tuple[str, ...] | None, str]:
    """The C++ compiler's command, or None, and what was looked for."""
    named = os.environ.get("CXX")
    candidates = [tuple(shlex.split(named))] if named else [(name,) for name in COMPILERS]
    sought = f"CXX={named}" if named else f"{', '.join(COMPILERS)} on PATH"
    if sys.platform == "win32":
        return None, "none: the native library is not built on Windows"
    return next((command for command in candidates if shutil.which(command[0])), None), sought


def find_torch() -> metadata.Distribution | None:
    """torch >= 2.10, importable here or in the environment that an isolated build will install into.

    Front ends such as pip run an isolated build with the target's interpreter, whose install paths sysconfig
    still gives.
    """
    paths = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for distribution in metadata.distributions(name="torch", path=paths):
        version = distribution.version.split(".")
        if (int(version[0]), int(version[1])) >= TORCH_MINIMUM:
            return distribution
    return None


def compiler_version(command: tuple[str, ...]) -> str:
    """First line of ``<compiler> --version``, or the command where that prints nothing."""
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return next(iter(result.stdout.splitlines()), shlex.join(command))


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """setuptools' requirements, and torch where the target environment has none to build against."""
    requirements: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if decide().compiler and find_torch() is None:
        requirements.append(f"torch>={'.'.join(map(str, TORCH_MINIMUM))}")
    return requirements


get_requires_for_build_editable = get_requires_for_build_wheel
