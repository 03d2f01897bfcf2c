"""Copies of the Triton kernels with a fault in their source, and the layer of the checks that notices it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuda.mutations import source_faults
from cuda.mutations.detection import layer_of
from cuda.toolchain import ROOT

KERNELS = ROOT / "triton_kernels"
MUTANTS = ROOT / "build/triton-tests/mutants"


@dataclass(frozen=True)
class Fault:
    """A replacement of `old`, once in `file`, by `new`, which `layer` must notice in a call of `probe`."""

    name: str
    file: str
    old: str
    new: str
    probe: str
    layer: str


def edited(fault: Fault) -> str:
    """Return the text of the fault's file with the fault in it."""
    return source_faults.edited(fault, (KERNELS / fault.file).read_text())


def package_of(fault: Fault) -> str:
    """Return the name of an importable copy of the kernels with the fault in it."""
    text = edited(fault)
    sources = "".join(path.read_text() for path in sorted(KERNELS.rglob("*.py")))
    name = f"mutant_{hashlib.sha256((sources + text).encode()).hexdigest()[:16]}"
    folder = MUTANTS / name
    shutil.copytree(KERNELS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / fault.file).write_text(text)
    if str(MUTANTS) not in sys.path:
        sys.path.append(str(MUTANTS))
    return name


def layer_that_notices(fault: Fault | None, run: Callable[..., Any]) -> str | None:
    """Return the layer that notices a fault when `run` is called with its package; None if no layer does."""
    options = {} if fault is None else {"package": package_of(fault)}
    try:
        run(**options)
    except AssertionError as error:
        layer = layer_of(str(error))
        return "values" if layer == "convergence" else layer
    return None
