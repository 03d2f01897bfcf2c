"""What is known of the CUDA kernels without a GPU, as tables in docs/gpu-evidence.md.

    KRADAGRAD_BUILD=cuda pip install -e .[test] && python bench/gpu_evidence.py

The numbers are those that tests/test_cuda_budgets.py holds to budgets.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from gpu_counts import BLOCKS, CASES, NUMEL, Case, binaries, count, toolchain

PAGE = Path(__file__).resolve().parent.parent / "docs/gpu-evidence.md"

HEADER = """\
# Evidence without a GPU

`python bench/gpu_evidence.py` writes this page; `tests/test_cuda_budgets.py` holds the same numbers to
budgets. nvcc {nvcc}, cuobjdump {cuobjdump}. No number here was measured on a GPU.

**What it shows.** The first tables are the machine code in the native library: whether a kernel spills, how
many of its CTAs fit an SM, and that tensor cores and asynchronous copies are used. The last table is counted
while the PTX that all of it is made from runs on the CPU (`tests/ptx`), over whole calls of an op: the bytes
that it moves if the L2 keeps all within a launch and nothing between launches, those that its warps request,
its passes through shared memory, and the mma instructions for each load from it.

**What it does not show.** Times. Whether the L2 keeps what these counts take it to keep. How ptxas orders
instructions and hides latencies, and how often an instruction of the first tables runs. How shared memory
serves asynchronous copies, which are counted like stores. `bench/gpu_check.sh` measures on a GPU.

**Launches.** 1 for all blocks of up to 128 a side; for larger ones 4 with `trace` and no refinement, 10 at
refine 2, whatever their number; 2 for `accumulate_`, 1 for `parameter_step_`.
`tests/cuda/test_factor_kernels.py` and `tests/cuda/test_elementwise_kernels.py` count them.
"""

BINARIES = """\
## Compiled for {architecture}

Shared memory: static + dynamic bytes, as the plans launch it. LDL, STL, HMMA, LDS and LDGSTS: instructions in
the code, not executions.

"""

COUNTS = """\
## Counted by the executor

{blocks} blocks a call, or one parameter of {numel} elements. Bytes: distinct 32-byte sectors of each launch,
tables included. The floor is every tensor once for every read and write; the lower floor, for the resident
kernel, takes only the lower halves of symmetric matrices that are read. The grouped form's floor contains its
intermediate results, except those of refinement, whose cases have no ratio therefore. Requested: the sectors
of every request of a warp. Conflicts of loads: passes beyond the ideal of all reads of shared memory;
wavefronts are those of all accesses.

"""


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def binary_rows(architecture: str) -> Iterable[Iterable[object]]:
    shapes = binaries.launch_shapes()
    for name, made in sorted(binaries.all_binaries(architecture).items()):
        shape, code = shapes[name], made.instructions
        yield (
            f"`{name}`",
            shape.threads,
            made.registers,
            made.stack,
            code["LDL"] + code["STL"],
            f"{made.static_shared} + {shape.dynamic_shared}",
            binaries.ctas_of_sm(made, shape, architecture),
            f"{binaries.occupancy(made, shape, architecture):.0%}",
            *(code[opcode] for opcode in ("HMMA", "LDS", "LDGSTS")),
        )


def count_row(case: Case) -> Iterable[object]:
    of = count(case)
    has_floor = case.op != "kron_step" or case.side <= 128 or case.rule[1] == 0
    resident = case.op == "kron_step" and case.side <= 128
    return (
        f"`{next((k for k in of.kernels if k.startswith('grouped')), of.kernels[0])}`",
        case,
        f"{of.footprint / of.floor:.3f}" if has_floor else "",
        f"{of.footprint / of.lower_floor:.3f}" if resident else "",
        f"{of.requested / of.floor:.3f}" if has_floor else "",
        of.conflicts_of_loads,
        f"{of.wavefronts / of.ideal_wavefronts:.4f}" if of.ideal_wavefronts else "",
        f"{of.mma / of.shared_loads:.2f}" if of.mma else "",
    )


def release(text: str) -> str:
    """The version in what one of NVIDIA's tools says of itself."""
    found = re.search(r"V(\d[\d.]*\d)", text)
    if found is None:
        raise RuntimeError(f"no version in {text!r}")
    return found.group(1)


def page() -> str:
    nvcc = subprocess.run([toolchain.require_nvcc(), "--version"], capture_output=True, text=True, check=True)
    versions = {"nvcc": release(nvcc.stdout), "cuobjdump": release(binaries.cuobjdump("--version"))}
    parts = [HEADER.format(**versions)]
    columns = (
        "kernel",
        "threads",
        "registers",
        "stack",
        "LDL + STL",
        "shared memory",
        "CTAs an SM",
        "occupancy",
    )
    for architecture in binaries.ARCHITECTURES:
        rows = binary_rows(architecture)
        parts.append(
            BINARIES.format(architecture=architecture) + table([*columns, "HMMA", "LDS", "LDGSTS"], rows)
        )
    columns = ("kernel", "call", "bytes / floor", "bytes / lower floor", "requested / floor")
    columns += ("conflicts of loads", "wavefronts / ideal", "mma / shared load")
    sizes = {"blocks": BLOCKS, "numel": NUMEL}
    parts.append(COUNTS.format(**sizes) + table(columns, map(count_row, CASES)))
    return "\n".join(parts)


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
