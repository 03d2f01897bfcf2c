"""The sweep over edits of a kernel's PTX, and a table of the layers that notice them."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import inputs
import ptx_executor

from cuda import toolchain

from .detection import layers_that_notice
from .probes import of_kernel
from .ptx_edits import KINDS, STRICT, Edit
from .ptx_edits import sample as sample_of

KERNELS = tuple(name for name, kernel in inputs.kernels().items() if kernel.swept)

SMALL_KINDS = ("drop barrier", "drop wait", "wait for one group less", "drop commit")
PER_KIND = {kind: 1000 if kind in SMALL_KINDS else 12 if kind in STRICT else 6 for kind in KINDS}
"""Number of edits of each kind that the test takes: all of synchronisation, a sample of the rest."""


def sample(kernel: str, text: str) -> list[Edit]:
    return sample_of(text, PER_KIND, kernel)


def text_of(kernel: str) -> str:
    """Return the PTX of a kernel, isolated as it is tested."""
    return ptx_executor.isolate(toolchain.ptx(inputs.kernels()[kernel].source), kernel)


UNREACHED = "not reached"


def run(kernel: str, text: str, chosen: Iterable[Edit]) -> list[tuple[Edit, set[str]]]:
    """Return every edit with the layers that noticed it; `UNREACHED` if no probe executes the instruction."""
    lines = text.split("\n")
    probes = of_kernel(kernel)
    assert not layers_that_notice(text, kernel, probes), "the kernel itself does not pass"
    results = []
    for edit in chosen:
        layers = layers_that_notice(edit.apply(lines), kernel, probes)
        if not layers and not layers_that_notice(edit.apply(lines, "\ttrap;"), kernel, probes):
            layers = {UNREACHED}
        results.append((edit, layers))
    return results


def table(results: Iterable[tuple[Edit, set[str]]]) -> str:
    """Return a table with a row for each kind: edits, survivors, and edits by the layer that noticed them."""
    counts: dict[str, collections.Counter[str]] = {}
    for edit, layers in results:
        row = counts.setdefault(edit.kind, collections.Counter())
        row["edits"] += 1
        row.update(layers or {"survivors"})
    lines = []
    for kind, row in counts.items():
        layers = ", ".join(
            f"{name} {n}" for name, n in row.most_common() if name not in ("edits", "survivors")
        )
        lines.append(f"| {kind} | {row['edits']} | {row['survivors']} | {layers} |")
    return "\n".join(["| edit | n | survive | noticed by |", "|---|---|---|---|", *lines])
