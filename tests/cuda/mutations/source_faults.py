"""Faults in the kernels' source: textual edits, compiled in a copy of csrc/cuda/kernels and its like."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cuda import executor_backend, toolchain

FLAGS = ("-std=c++20", "--ptx", "-arch=compute_80")
MUTANTS = toolchain.BUILD / "mutants"
CSRC = toolchain.ROOT / "csrc"


@dataclass(frozen=True)
class Fault:
    """`old` stands once in `file`; with `new` in its place, `layer` must notice."""

    name: str
    file: str
    old: str
    new: str
    kernel: str
    layer: str


class DoesNotApply(Exception):  # noqa: N818
    """The kernels' source has changed, and the fault must change with it."""


def edited(fault: Fault, text: str) -> str:
    """The text of the fault's file with the fault in it."""
    found = text.count(fault.old)
    if found != 1:
        raise DoesNotApply(f"{fault.name}: {found} times in {fault.file}, not once:\n{fault.old}")
    return text.replace(fault.old, fault.new)


def only(text: str, kernel: str) -> str:
    """A .cu file with one of the kernels that a macro makes, so that compiling takes little."""
    side, precision = ["", *kernel.split("_")][-2:]
    wanted = rf"KRADAGRAD_KERNEL\({side}, \d+, {precision},"
    lines = text.splitlines(keepends=True)
    return "".join(x for x in lines if not x.startswith("KRADAGRAD_KERNEL(") or re.match(wanted, x))


def sources(fault: Fault) -> dict[str, str]:
    """The files that the mutant's .cu file may include, and itself, by their places in csrc."""
    stem = next(stem for start, stem in executor_backend.SOURCES.items() if fault.kernel.startswith(start))
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
    """The place of the .cu file among sources."""
    return next(place for place in texts if place.endswith(".cu"))


def compiled(fault: Fault) -> str:
    """The PTX of the fault's kernel."""
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
