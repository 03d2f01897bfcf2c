"""Record of this installation's build, which setup.py writes into the package."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).parent / "_build.json"


@dataclass(frozen=True)
class BuildInfo:
    """The build's choices and tools."""

    requested: str | None
    """Value of KRADAGRAD_BUILD in the build; None without a record."""
    native: str
    """Devices of the native library: ``cpu``, ``cuda`` (and the CPU), or ``none`` without a library."""
    reason: str | None
    """Reason why there is no native library, or why it has no CUDA kernels."""
    compiler: str | None = None
    nvcc: str | None = None
    architectures: str | None = None
    """GPU architectures of the CUDA kernels, in the notation of TORCH_CUDA_ARCH_LIST."""
    kernels: str | None = None
    """Hash of the CUDA kernels' sources."""
    torch: str | None = None
    glibc: str | None = None
    """Oldest glibc with which the library loads; None: that of the machine that built it."""


def read_build_info() -> BuildInfo:
    """Return the record of this installation's build; the file is read once."""
    return _read(RECORD)


@functools.cache
def _read(record: Path) -> BuildInfo:
    if not record.exists():
        return BuildInfo(None, "none", "the package was not installed, it is imported from its source tree")
    return BuildInfo(**json.loads(record.read_text(encoding="utf-8")))
