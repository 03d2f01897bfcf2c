"""Compilation of the executor on first use, into build/ptx_executor/ of the repository."""

import re
from pathlib import Path
from types import ModuleType

from compiled_module import ROOT, build_module

SOURCES = Path(__file__).parent / "executor"
# Fused or reassociated arithmetic would change the values; overflow wraps, as it does on the device.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fwrapv", "-fPIC", "-fvisibility=hidden"]


def _processor() -> str:
    """Return the properties of the processor that -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return "".join(re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.MULTILINE)[:2])


def load() -> ModuleType:
    """Compile what has changed, and import the module."""
    # bindings.cpp takes longest, so it starts first.
    sources = sorted(SOURCES.glob("*.cpp"), key=lambda path: (path.name != "bindings.cpp", path.name))
    return build_module("_executor", sources, FLAGS, ROOT / "build/ptx_executor", _processor())
