"""Facts about the CUDA and Triton kernels that need no GPU, as tables in docs/gpu-evidence.md.

    KRADAGRAD_BUILD=cuda pip install -e .[test]
    python -m bench.gpu.kernels.evidence                 # prints the page, after some minutes
    python -m bench.gpu.kernels.evidence --record        # writes it

tests/bench/test_cuda_budgets.py compares the same numbers with budgets.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
from collections.abc import Callable, Iterable

import pytest
from cuda import binaries, toolchain
from cuda.executor_backend import Executor
from triton_ptx import binaries as triton_binaries
from triton_ptx.compiled import Compiled, triton

from bench.common import ROOT, add_record_option, markdown_table
from bench.gpu.kernels.counts import BLOCKS, CALLS, ELEMENTWISE, NUMEL, CountedCall, ExecutedBackend, count

PAGE = ROOT / "docs/gpu-evidence.md"

HEADER = """\
# Evidence without a GPU

`python -m bench.gpu.kernels.evidence --record` writes this page; `tests/bench/test_cuda_budgets.py` and
`tests/bench/test_triton_budgets.py` compare the same numbers with budgets. nvcc {nvcc}, cuobjdump
{cuobjdump}. No number here was measured on a GPU.

**Content.** The first tables describe the machine code in the native library: the spills of each kernel, the
CTAs that fit an SM, and the use of tensor cores and asynchronous copies. The last table has counts of whole
calls of an op, taken while the PTX of the same machine code runs on the CPU (`tools/ptx_executor`): the bytes
moved if the L2 keeps everything within a launch and nothing between launches, the bytes that warps request,
the passes through shared memory, and the mma instructions per load from shared memory.

**Limits.** The page has no times. It does not show if the L2 keeps the data that these counts assume, how
ptxas orders instructions and hides latencies, or how often an instruction of the first tables runs. It does
not show how shared memory serves asynchronous copies; they are counted like stores. `bench/gpu_check.sh`
measures on a GPU.

Triton's kernels follow the CUDA kernels: every row of the tuning table, compiled for four architectures, and
the counts for the two architectures whose PTX the executor runs.

**Launches of the CUDA kernels.** All blocks of up to 64, 96, 128 or 256 a side take 2 launches each. Their
roots, and those of blocks of up to 512 or 1024, take 1 each. Larger blocks take 12 at refine 2, for any
number of blocks. All other ops take 1. `test_square_root_kernels.py`, `test_scalar_kernels.py` and
`test_elementwise_kernels.py` in `tests/cuda` count them.

**Launches of Triton's kernels.** Blocks of up to 64 a side take 1 launch where they fit. Other blocks take 13
at refine 2, or 14 where sides are coupled (`tests/test_triton_plans.py`).
"""

BINARIES = """\
## Compiled for {architecture}

Shared memory: static + dynamic bytes of a launch. LDL, STL, HMMA, LDS and LDGSTS: instructions in the code,
not executions.

"""

TRITON_BINARIES = """\
## Triton {version}, compiled for {architecture}

One line per row of the tuning table, over its specialisations with the default recipe. Numbers are the
largest, except the smallest number of tensor-core instructions. Spilled: bytes of stack, loads and stores of
local memory.

"""

COUNTS = """\
## Counted by the executor

{blocks} blocks a call, or one parameter of {numel} elements. Bytes: distinct 32-byte sectors of each launch,
tables included. Floor: for the CUDA kernels' steps, the bytes that the roofline assumes for each launch; for
all others, every tensor once for every read and write. Requested: the sectors of every request of a warp.
Conflicts of loads: passes beyond the ideal of all reads of shared memory. Wavefronts: passes of all accesses.

"""


def binary_rows(architecture: str) -> Iterable[Iterable[object]]:
    shapes = binaries.launch_shapes()
    for name, binary in sorted(binaries.all_binaries(architecture).items()):
        shape, code = shapes[name], binary.instructions
        yield (
            f"`{name}`",
            shape.threads,
            binary.registers,
            binary.stack,
            code["LDL"] + code["STL"],
            f"{binary.static_shared} + {shape.dynamic_shared}",
            binaries.ctas_of_sm(binary, shape, architecture),
            f"{binaries.occupancy(binary, shape, architecture):.0%}",
            *(code[opcode] for opcode in ("HMMA", "LDS", "LDGSTS")),
        )


def count_row(call: CountedCall, make: Callable[[], ExecutedBackend] = Executor) -> Iterable[object]:
    counts = count(call, make)
    return (
        f"`{next((k for k in counts.kernels if 'product' in k), counts.kernels[0])}`",
        call,
        f"{counts.footprint / counts.floor:.3f}",
        f"{counts.requested / counts.floor:.3f}",
        counts.conflicts_of_loads,
        f"{counts.wavefronts / counts.ideal_wavefronts:.4f}" if counts.ideal_wavefronts else "",
        f"{counts.mma / counts.shared_loads:.2f}" if counts.mma else "",
    )


def triton_rows(architecture: str) -> Iterable[Iterable[object]]:
    """Yield a line per row of the tuning table."""
    rows: dict[tuple[str, str, str], list[triton_binaries.Made]] = {}
    for precision in triton_binaries.PRECISIONS:
        for kernel in triton_binaries.made(precision, architecture):
            column = precision if "PRECISION" in kernel.constants else ""
            rows.setdefault((kernel.kernel, kernel.shape, column), []).append(kernel)
    for key, same in sorted(rows.items()):
        wanted = triton_binaries.tensor_cores(same[0], architecture)
        spilled = [
            kernel.binary.stack + kernel.binary.instructions["LDL"] + kernel.binary.instructions["STL"]
            for kernel in same
        ]
        yield (
            f"`{key[0]}`",
            *key[1:],
            same[0].constants.get("BM", same[0].constants.get("SPAN", "")),
            same[0].launched.threads,
            len({str(kernel.constants) for kernel in same}),
            max(kernel.binary.registers for kernel in same),
            max(spilled),
            max(kernel.launched.dynamic_shared for kernel in same),
            f"{min(kernel.binary.instructions[wanted] for kernel in same)} {wanted}" if wanted else "",
        )


def triton_page() -> Iterable[str]:
    columns = ("kernel", "shape", "precision", "tile", "threads", "specialisations", "registers", "spilled")
    for architecture in triton_binaries.ARCHITECTURES:
        header = TRITON_BINARIES.format(version=triton.__version__, architecture=architecture)
        rows = triton_rows(architecture)
        yield header + markdown_table([*columns, "shared memory", "tensor cores"], rows)


def release(text: str) -> str:
    """Return the version in the output of one of NVIDIA's tools."""
    match = re.search(r"V(\d[\d.]*\d)", text)
    if match is None:
        raise RuntimeError(f"no version in {text!r}")
    return match.group(1)


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
            BINARIES.format(architecture=architecture)
            + markdown_table([*columns, "HMMA", "LDS", "LDGSTS"], rows)
        )
    columns = ("kernel", "call", "bytes / floor", "requested / floor")
    columns += ("conflicts of loads", "wavefronts / ideal", "mma / shared load")
    sizes = {"blocks": BLOCKS, "numel": NUMEL}
    parts.append(COUNTS.format(**sizes) + markdown_table(columns, map(count_row, CALLS)))
    parts += triton_page()
    for architecture in ("sm_80", "sm_90"):
        make = functools.partial(Compiled, architecture)
        rows = (count_row(call, make) for call in ELEMENTWISE)
        header = f"## Triton's kernels for {architecture}, counted by the executor\n\nAs above.\n\n"
        parts.append(header + markdown_table(columns, rows))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_record_option(parser, "docs/gpu-evidence.md")
    options = parser.parse_args()
    if options.record:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    try:
        main()
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
