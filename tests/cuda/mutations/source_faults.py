"""Faults in the kernels' source: textual edits, compiled in a copy of the source files and their headers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import inputs
from inputs.op import Fault

from cuda import toolchain

__all__ = ["Fault", "compiled", "edited", "sources"]

FLAGS = ("-std=c++20", "--ptx", "-arch=compute_80")
MUTANTS = toolchain.BUILD / "mutants"
CSRC = toolchain.ROOT / "csrc"


class DoesNotApply(Exception):  # noqa: N818
    """Raised if the kernels' source has changed, so that the fault must change with it."""


def edited(fault: Fault, text: str) -> str:
    """Return the text of the fault's file with the fault in it."""
    count = text.count(fault.old)
    if count != 1:
        raise DoesNotApply(f"{fault.name}: {count} times in {fault.file}, not once:\n{fault.old}")
    return text.replace(fault.old, fault.new)


def only(text: str, kernel: str) -> str:
    """Return a .cu file with one of the kernels that a macro makes, which compiles faster."""
    side, precision = ["", *kernel.split("_")][-2:]
    wanted = rf"KRADAGRAD_KERNEL\({side}, \d+, {precision},"
    lines = text.splitlines(keepends=True)
    return "".join(x for x in lines if not x.startswith("KRADAGRAD_KERNEL(") or re.match(wanted, x))


def sources(fault: Fault) -> dict[str, str]:
    """Return the mutant's .cu file and those that it may include, by their paths in csrc."""
    stem = inputs.kernels()[fault.kernel].source
    files = [toolchain.KERNELS / f"{stem}.cu", *toolchain.kernel_headers()]
    texts = {str(path.relative_to(CSRC)): path.read_text() for path in files}
    place = next((place for place in texts if Path(place).name == fault.file), None)
    if place is None:
        raise DoesNotApply(f"{fault.name}: {stem}.cu does not include {fault.file}")
    texts[place] = edited(fault, texts[place])
    main = main_of(texts)
    texts[main] = only(texts[main], fault.kernel)
    return texts


def main_of(texts: dict[str, str]) -> str:
    """Return the path of the .cu file among sources."""
    return next(place for place in texts if place.endswith(".cu"))


def compiled(fault: Fault) -> str:
    """Return the PTX of the fault's kernel."""
    texts = sources(fault)
    main = main_of(texts)
    folder = MUTANTS / f"{Path(main).stem}.{_digest(texts)}"
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return toolchain.compile_ptx(folder, toolchain.nvcc_to_ptx(*FLAGS), folder / main)


def _digest(texts: dict[str, str]) -> str:
    whole = "\0".join(f"{name}\0{text}" for name, text in texts.items())
    return hashlib.sha256(" ".join([*FLAGS, whole]).encode()).hexdigest()[:16]
