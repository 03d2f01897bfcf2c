"""What this installation was built with: the record that setup.py leaves in the package."""

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
    """KRADAGRAD_BUILD of the build; None where there is no record of one."""
    native: str
    """What the native library serves: ``cpu``, ``cuda`` (and the CPU), or ``none``: there is no library."""
    reason: str | None
    """Why there is no native library, or no CUDA kernels in it."""
    compiler: str | None = None
    nvcc: str | None = None
    kernels: str | None = None
    """Hash of the CUDA kernels' sources."""
    torch: str | None = None


def read() -> BuildInfo:
    """The record of this installation's build, read once."""
    return _read(RECORD)


@functools.cache
def _read(record: Path) -> BuildInfo:
    if not record.exists():
        return BuildInfo(None, "none", "the package was not installed, it is imported from its source tree")
    return BuildInfo(**json.loads(record.read_text(encoding="utf-8")))
