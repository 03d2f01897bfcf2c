"""What is known of the CUDA and Triton kernels without a GPU, as tables in docs/gpu-evidence.md.

    KRADAGRAD_BUILD=cuda pip install -e .[test] && python bench/gpu_evidence.py

The numbers are those that tests/test_cuda_budgets.py holds to budgets.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from gpu_counts import (
    BLOCKS,
    CASES,
    ELEMENTWISE,
    NUMEL,
    Case,
    Executor,
    Runner,
    binaries,
    count,
    toolchain,
)
from triton_ptx import binaries as triton_binaries
from triton_ptx.compiled import Compiled, triton

PAGE = Path(__file__).resolve().parent.parent / "docs/gpu-evidence.md"

HEADER = """\
# Evidence without a GPU

`python bench/gpu_evidence.py` writes this page; `tests/test_cuda_budgets.py` and
`tests/test_triton_budgets.py` hold the same numbers to budgets. nvcc {nvcc}, cuobjdump {cuobjdump}. No number
here was measured on a GPU.

**What it shows.** The first tables are the machine code in the native library: whether a kernel spills, how
many of its CTAs fit an SM, and that tensor cores and asynchronous copies are used. The last table is counted
while the PTX that all of it is made from runs on the CPU (`tests/ptx`), over whole calls of an op: the bytes
that it moves if the L2 keeps all within a launch and nothing between launches, those that its warps request,
its passes through shared memory, and the mma instructions for each load from it.

**What it does not show.** Times. Whether the L2 keeps what these counts take it to keep. How ptxas orders
instructions and hides latencies, and how often an instruction of the first tables runs. How shared memory
serves asynchronous copies, which are counted like stores. `bench/gpu_check.sh` measures on a GPU.

After the CUDA kernels come Triton's: every row of the tuning table, compiled for four architectures, and the
counts for the two whose PTX the executor runs.

**Launches.** 2 for all blocks of up to 64, 96, 128 or 256 a side each, 1 for their roots and for those of up
to 512 or 1024 each, 12 for larger blocks at refine 2, whatever their number; 2 for `accumulate_`, 1 for
`observe_gradients_`, `scale_updates_` and `parameter_step_`. `test_square_root_kernels.py`,
`test_scalar_kernels.py` and `test_elementwise_kernels.py` in `tests/cuda` count them. Of Triton's kernels 1
for blocks of up to 64 a side where they fit, 13 for others at refine 2, 14 where sides are coupled
(`tests/test_triton_plans.py`).
"""

BINARIES = """\
## Compiled for {architecture}

Shared memory: static + dynamic bytes, as the plans launch it. LDL, STL, HMMA, LDS and LDGSTS: instructions in
the code, not executions.

"""

TRITON_BINARIES = """\
## Triton {version}, compiled for {architecture}

Every row of the tuning table, the largest or, of the instructions that must be there, the smallest number of
its specialisations with the default recipe. Spilled: bytes of stack, loads and stores of local memory.

"""

COUNTS = """\
## Counted by the executor

{blocks} blocks a call, or one parameter of {numel} elements. Bytes: distinct 32-byte sectors of each launch,
tables included. The floor of the CUDA kernels' steps is what the roofline takes each of their launches to
move, that of the others every tensor once for every read and write. Requested: the sectors of every request
of a warp. Conflicts of loads: passes beyond the ideal of all reads of shared memory;
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


def count_row(case: Case, make: Callable[[], Runner] = Executor) -> Iterable[object]:
    of = count(case, make)
    return (
        f"`{next((k for k in of.kernels if 'product' in k), of.kernels[0])}`",
        case,
        f"{of.footprint / of.floor:.3f}",
        f"{of.requested / of.floor:.3f}",
        of.conflicts_of_loads,
        f"{of.wavefronts / of.ideal_wavefronts:.4f}" if of.ideal_wavefronts else "",
        f"{of.mma / of.shared_loads:.2f}" if of.mma else "",
    )


def triton_rows(architecture: str) -> Iterable[Iterable[object]]:
    """Kernels by row of the tuning table."""
    rows: dict[tuple[str, str, str], list[triton_binaries.Made]] = {}
    for precision in triton_binaries.PRECISIONS:
        for of in triton_binaries.made(precision, architecture):
            own = precision if "PRECISION" in of.constants else ""
            rows.setdefault((of.kernel, of.shape, own), []).append(of)
    for key, same in sorted(rows.items()):
        wanted = triton_binaries.tensor_cores(same[0], architecture)
        spilled = [
            of.binary.stack + of.binary.instructions["LDL"] + of.binary.instructions["STL"] for of in same
        ]
        yield (
            f"`{key[0]}`",
            *key[1:],
            same[0].constants.get("BM", same[0].constants.get("SPAN", "")),
            same[0].launched.threads,
            len({str(of.constants) for of in same}),
            max(of.binary.registers for of in same),
            max(spilled),
            max(of.launched.dynamic_shared for of in same),
            f"{min(of.binary.instructions[wanted] for of in same)} {wanted}" if wanted else "",
        )


def triton_page() -> Iterable[str]:
    columns = ("kernel", "shape", "precision", "tile", "threads", "specialisations", "registers", "spilled")
    for architecture in triton_binaries.ARCHITECTURES:
        header = TRITON_BINARIES.format(version=triton.__version__, architecture=architecture)
        rows = triton_rows(architecture)
        yield header + table([*columns, "shared memory", "tensor cores"], rows)


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
    columns = ("kernel", "call", "bytes / floor", "requested / floor")
    columns += ("conflicts of loads", "wavefronts / ideal", "mma / shared load")
    sizes = {"blocks": BLOCKS, "numel": NUMEL}
    parts.append(COUNTS.format(**sizes) + table(columns, map(count_row, CASES)))
    parts += triton_page()
    for architecture in ("sm_80", "sm_90"):
        make = functools.partial(Compiled, architecture)
        rows = (count_row(case, make) for case in ELEMENTWISE)
        header = f"## Triton's kernels for {architecture}, counted by the executor\n\nAs above.\n\n"
        parts.append(header + table(columns, rows))
    return "\n".join(parts)


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
