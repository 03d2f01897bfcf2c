"""Bytes and products of the CUDA and Triton kernels, counted by the PTX executor, and the least bytes.

tests/bench/test_cuda_budgets.py compares the counts with budgets, evidence.py lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import inputs
import torch
from cuda.executor_backend import Executor
from inputs import square_root
from inputs.op import ElementwiseOp

from bench.roofline.cuda_costs import Blocks, CallOptions, step_costs

SECTOR = 32
BLOCKS = 2
NUMEL = 1 << 17
REFINE = 2
"""`refine` of the steps' updates."""


@dataclass(frozen=True)
class CountedCall:
    """A call to count.

    Attributes:
        side: side of a step's blocks, whose updates are coupled; 0 for elementwise ops.
    """

    op: str
    dtype: torch.dtype = torch.float32
    side: int = 0
    precision: str = "bf16x3"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        if self.op != "kron_step":
            return f"{self.op}, {dtype}"
        return f"{self.side} x {self.side}, coupled, refine {REFINE}, {dtype} gradients, {self.precision}"


class ExecutedBackend(Protocol):
    """A backend whose kernels run on the executor: CUDA kernels, or Triton's (tests/triton_ptx)."""

    launches: list[tuple[str, Any]]


@dataclass(frozen=True)
class Count:
    """Sums over the launches of a call, and the least bytes that its tensors need."""

    kernels: tuple[str, ...]
    footprint: int  # distinct sectors of every launch
    requested: int  # sectors of every request of every warp
    floor: int  # every tensor once for every necessary read and write
    mma: int
    shared_loads: int  # warp instructions
    conflicts_of_loads: int  # wavefronts of shared loads beyond the ideal
    wavefronts: int
    ideal_wavefronts: int


def _kron_step(call: CountedCall, executor: ExecutedBackend) -> int:
    """Run a step; return as the floor the bytes that the roofline assumes for it."""
    rule = replace(square_root.RULE, method="products", refine=REFINE, precision=call.precision, coupled=True)
    group = square_root.group(BLOCKS, (call.side, call.side), view_dtype=call.dtype)
    given = square_root.given([group], rule)
    given.scales.fill_(1)
    square_root.run(executor, given)
    options = CallOptions(rule, grad=call.dtype.itemsize, direction=call.dtype.itemsize)
    return int(sum(cost.bytes for cost in step_costs([Blocks(BLOCKS, call.side, call.side)], options)))


def _elementwise(op: ElementwiseOp, call: CountedCall, executor: ExecutedBackend) -> int:
    """Run an elementwise op on one parameter; return the bytes that it must read and write."""
    given = op.one_parameter(call.dtype, NUMEL)
    op.run(executor, given)
    return op.floor(given)


ELEMENTWISE_OPS = {name.removesuffix("_"): op for name, op in inputs.elementwise().items()}
OPS: dict[str, Callable[[CountedCall, ExecutedBackend], int]] = {
    "kron_step": _kron_step,
    **{name: functools.partial(_elementwise, op) for name, op in ELEMENTWISE_OPS.items()},
}


@functools.cache
def count(call: CountedCall, make: Callable[[], ExecutedBackend] = Executor) -> Count:
    """Run a call on the executor, with its usual checks of every launch, and sum up the counters."""
    torch.manual_seed(0)
    executor = make()
    floor = OPS[call.op](call, executor)
    counters = [launch.counters for _, launch in executor.launches]

    def total(*names: str) -> int:
        return sum(c[name] for c in counters for name in names)

    loads = [v for c in counters for k, v in c.by_opcode.items() if k.startswith(("ld.shared", "ldmatrix"))]
    return Count(
        kernels=tuple(dict.fromkeys(name for name, _ in executor.launches)),
        footprint=total("footprint_read_bytes", "footprint_write_bytes"),
        requested=SECTOR * total("global_read_sectors", "global_write_sectors"),
        floor=floor,
        mma=total("mma"),
        shared_loads=sum(load["n"] for load in loads),
        conflicts_of_loads=sum(load["wavefronts"] - load["ideal"] for load in loads),
        wavefronts=total("shared_wavefronts"),
        ideal_wavefronts=total("shared_ideal_wavefronts"),
    )


DTYPES = (torch.float32, torch.bfloat16)


def _steps(
    precisions: Sequence[str], dtypes: Sequence[torch.dtype], sides: Sequence[int]
) -> list[CountedCall]:
    return [CountedCall("kron_step", t, side, p) for p in precisions for side in sides for t in dtypes]


STEPS = _steps(["bf16x3"], DTYPES, (64, 128, 256))
# Bytes do not depend on the precision; arithmetic and shared memory do.
ARITHMETIC = _steps(["tf32x3", "fp32"], DTYPES[:1], (64, 128, 256))
ELEMENTWISE = [CountedCall(op, dtype) for op in ELEMENTWISE_OPS for dtype in DTYPES]
CALLS = [*STEPS, *ELEMENTWISE, *ARITHMETIC]
