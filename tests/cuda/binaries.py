"""The kernels of the native library for each GPU: registers, memory, instructions, and CTAs that fit an SM.

This module needs no GPU. Launch shapes come from the library's plans (csrc/cuda/plan).
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import inputs
import torch
from compiled_module import compile_cached
from inputs import roots, square_root
from inputs.op import TensorOp

from kradagrad_ext import build_info
from kradagrad_ext.backends.base import Turn

from . import toolchain
from .executor_backend import GroupedPlanner, Planner

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
PRECISIONS = ("bf16x3", "tf32x3", "fp32")

KB = 1024
SM_SHARED = {"sm_80": 164 * KB, "sm_90": 228 * KB, "sm_100": 228 * KB}
RESERVED_SHARED = 1 * KB
"""Bytes that the system reserves for every CTA; a CTA may have the SM's shared memory less these."""

REGISTERS_OF_PARTITION = 16 * KB
PARTITIONS = 4
REGISTER_GRANULARITY = 256
MAX_WARPS, MAX_CTAS = 64, 32

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
USAGE = re.compile(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Binary:
    """One kernel of a cubin."""

    registers: int
    stack: int
    local: int
    static_shared: int
    instructions: Counter[str] = field(default_factory=Counter)
    """Number of instructions by the opcode before its first dot, as they are written, not as they run."""


@dataclass(frozen=True)
class Shape:
    """Threads and bytes of dynamic shared memory with which the plans launch a kernel."""

    threads: int
    dynamic_shared: int


def _directories_of_tools() -> list[str]:
    """List the folders of tools in PyPI's nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm and Triton."""
    folders = []
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            folders += map(str, sorted(Path(place).glob(pattern)))
    return folders


@functools.cache
def _tool_path() -> str:
    """Return a PATH with cuobjdump, and with nvdisasm, which cuobjdump calls."""
    path = os.pathsep.join([*_directories_of_tools(), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not shutil.which(tool, path=path)]
    if missing:
        names = " and no ".join(missing)
        toolchain.give_up(f"no {names}: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return path


def cuobjdump(*arguments: str) -> str:
    """Return the output of cuobjdump."""
    return _run("cuobjdump", *arguments)


def _run(tool: str, *arguments: str) -> str:
    path = _tool_path()
    command = [shutil.which(tool, path=path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def dump(file: Path, *arguments: str, tool: str = "cuobjdump") -> str:
    """Return a tool's output for a file, cached by the file's content if KRADAGRAD_CACHE names a folder."""
    _tool_path()  # a cached output must not hide that the tool is missing
    folder = compile_cached.cache_folder()
    if folder is None:
        return _run(tool, *arguments, str(file))
    entry = folder / compile_cached.key(tool.encode(), *map(str.encode, arguments), file.read_bytes())
    kept = compile_cached.fetch(entry)
    if kept is None:
        kept = zlib.compress(_run(tool, *arguments, str(file)).encode())
        compile_cached.store(entry, kept)
    return zlib.decompress(kept).decode()


def disassemble(cubin: Path) -> str:
    """Return the code of a cubin with the source lines of its instructions."""
    return dump(cubin, "-g", "-c", tool="nvdisasm")


@functools.cache
def library() -> Path:
    """Return the path of the native library; give up unless it was built from the kernels of this tree."""
    built = build_info.read_build_info()
    if built.native != "cuda":
        toolchain.give_up(f"this installation serves {built.native}: KRADAGRAD_BUILD=cuda pip install .")
    if built.kernels != toolchain.build_native.kernels_digest():
        toolchain.give_up(
            "the native library was built from other kernels than csrc/cuda/kernels: build it again"
        )
    return Path(build_info.__file__).parent / "_native.abi3.so"


def count_instructions(sass: str) -> Counter[str]:
    """Count the instructions of cuobjdump's listing by the opcode before its first dot."""
    return Counter(INSTRUCTION.findall(sass))


@functools.cache
def all_binaries(architecture: str) -> dict[str, Binary]:
    """Return every kernel by name, compiled for one architecture."""
    listing = dump(library(), "-sass", "-arch", architecture)
    listings = re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]
    if not listings:
        toolchain.give_up(f"the native library was built for other architectures than {architecture}")
    code = {listing.split(maxsplit=1)[0]: count_instructions(listing) for listing in listings}
    used = read_usage(library(), architecture)
    if used.keys() != code.keys():
        raise RuntimeError(f"cuobjdump names other kernels in -res-usage than in -sass: {architecture}")
    return {name: replace(made, instructions=code[name]) for name, made in used.items()}


def read_usage(file: Path, architecture: str) -> dict[str, Binary]:
    """Return every kernel of a library or cubin by name, with its use of an SM, without its instructions."""
    # From sm_90 on, the numbers of a cubin contain the reserved shared memory.
    reserved = 0 if architecture == "sm_80" else RESERVED_SHARED
    arguments = () if file.suffix == ".cubin" else ("-arch", architecture)
    result = {}
    for name, *numbers in USAGE.findall(dump(file, "-res-usage", *arguments)):
        registers, stack, shared, local = map(int, numbers)
        result[name] = Binary(registers, stack, local, max(shared - reserved, 0))
    return result


def binary(kernel: str, architecture: str) -> Binary:
    """Return one kernel, compiled for one architecture."""
    return all_binaries(architecture)[kernel]


@functools.cache
def launch_shapes() -> dict[str, Shape]:
    """Return threads and dynamic shared memory of every kernel, from plans that launch each at least once."""
    planner, launches = Planner(), []
    ways = (
        (GroupedPlanner(), 64),
        (GroupedPlanner(), 256),
        (planner, 64),
        (planner, 96),
        (planner, 128),
        (planner, 256),
    )
    for (steps, side), precision in itertools.product(ways, PRECISIONS):
        rule = replace(square_root.RULE, method="products", precision=precision)
        square_root.run(steps, square_root.given([square_root.group(1, (side, 4))], rule))
        launches += steps.planned
        if steps is planner and (side <= 128 or precision == "bf16x3"):
            root_rule = replace(roots.RULE, precision=precision)
            planner.polar_roots_([roots.root_side(1, side)], root_rule, Turn())
            launches += planner.planned
    for op in inputs.ops().values():
        if isinstance(op, TensorOp):
            op.run(planner, op.make(torch.float32))
            launches += planner.planned
    shapes = {name: Shape(threads, shared) for name, _, threads, shared, _ in launches}
    assert all(shapes[name] == Shape(threads, shared) for name, _, threads, shared, _ in launches)
    return shapes


def shared_of_cta(made: Binary, shape: Shape) -> int:
    """Return the bytes of shared memory of a CTA, static and dynamic."""
    return made.static_shared + shape.dynamic_shared


def ctas_of_sm(made: Binary, shape: Shape, architecture: str) -> int:
    """Return how many CTAs an SM holds at once, by its registers, shared memory and warps."""
    warps = -(-shape.threads // 32)
    by_registers = REGISTERS_OF_PARTITION // registers_of_warp(made) * PARTITIONS // warps
    by_shared = SM_SHARED[architecture] // (shared_of_cta(made, shape) + RESERVED_SHARED)
    return min(by_registers, by_shared, MAX_WARPS // warps, MAX_CTAS)


def registers_of_warp(made: Binary) -> int:
    """Return the registers that are allocated for a warp."""
    return -(-made.registers * 32 // REGISTER_GRANULARITY) * REGISTER_GRANULARITY


def fit_together(of: Sequence[tuple[Binary, Shape]], architecture: str) -> bool:
    """Return True if an SM holds a CTA of each kernel at the same time."""
    registers = sum(registers_of_warp(made) * -(-shape.threads // (32 * PARTITIONS)) for made, shape in of)
    shared = sum(shared_of_cta(made, shape) + RESERVED_SHARED for made, shape in of)
    return registers <= REGISTERS_OF_PARTITION and shared <= SM_SHARED[architecture]


def occupancy(made: Binary, shape: Shape, architecture: str) -> float:
    """Return the share of an SM's warps that can be resident at once."""
    return ctas_of_sm(made, shape, architecture) * -(-shape.threads // 32) / MAX_WARPS
