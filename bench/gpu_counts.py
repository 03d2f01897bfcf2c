"""What the CUDA and Triton kernels move and multiply, counted by the PTX executor, and the least to move.

tests/test_cuda_budgets.py holds the counts to budgets, gpu_evidence.py lists them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from kernel_costs import Blocks, Call, step_costs
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import test_accumulate
import test_parameter_step
from cuda import binaries, toolchain
from cuda.executor_backend import Executor
from inputs import square_root

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import spans_of

__all__ = [
    "Case",
    "Count",
    "Executor",
    "Runner",
    "binaries",
    "count",
    "toolchain",
]  # and what gpu_evidence finds through here

SECTOR = 32
BLOCKS = 2
NUMEL = 1 << 17
REFINE = 2
"""Of the steps' updates."""


@dataclass(frozen=True)
class Case:
    """A call to count.

    Attributes:
        side: of a step's blocks, whose updates are coupled.
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


class Runner(Protocol):
    """A backend whose kernels the executor runs: the CUDA kernels, or Triton's (tests/triton_ptx)."""

    launches: list[tuple[str, Any]]


@dataclass(frozen=True)
class Count:
    """Sums over the launches of a call, and what its tensors need at least, in bytes."""

    kernels: tuple[str, ...]
    footprint: int  # distinct sectors of every launch
    requested: int  # sectors of every request of every warp
    floor: int  # every tensor once for every read and write that the call cannot do without
    mma: int
    shared_loads: int  # warp instructions
    conflicts_of_loads: int  # wavefronts of shared loads beyond the ideal
    wavefronts: int
    ideal_wavefronts: int


def size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _kron_step(case: Case, executor: Runner) -> int:
    """The floor is what the roofline takes a call to move."""
    rule = replace(square_root.RULE, method="products", refine=REFINE, precision=case.precision, coupled=True)
    group = square_root.group(BLOCKS, (case.side, case.side), view_dtype=case.dtype)
    given = square_root.given([group], rule)
    given.scales.fill_(1)
    square_root.run(executor, given)
    call = Call(rule, grad=case.dtype.itemsize, direction=case.dtype.itemsize)
    return int(sum(cost.bytes for cost in step_costs([Blocks(BLOCKS, case.side, case.side)], call)))


def _one_parameter(given: SimpleNamespace, kinds: dict[str, torch.dtype]) -> SimpleNamespace:
    """An elementwise op's arguments with one parameter in place of their own."""
    for name, dtype in kinds.items():
        setattr(given, name, [torch.rand(NUMEL).to(dtype)])
    given.coefficients, given.active = torch.ones(1, COEFFICIENTS), torch.ones(1, dtype=torch.bool)
    return given


def _accumulate(case: Case, executor: Runner) -> int:
    kinds = dict.fromkeys(("momenta", "second_moments", "directions"), torch.float32)
    kinds |= {"grads": case.dtype, "params": case.dtype}
    given = _one_parameter(test_accumulate.inputs(case.dtype), kinds)
    given.graft_norms = torch.zeros(spans_of(NUMEL))
    test_accumulate.run(executor, given)
    return size(given.grads) + 2 * size([*given.momenta, *given.second_moments])


def _parameter_step(case: Case, executor: Runner) -> int:
    kinds = dict.fromkeys(("momenta", "updates", "second_moments"), torch.float32)
    kinds |= {"params": case.dtype, "directions": case.dtype}
    given = _one_parameter(test_parameter_step.inputs(case.dtype), kinds)
    test_parameter_step.run(executor, given)
    return size(given.updates) + 2 * size(given.params)


OPS = {
    "kron_step": _kron_step,
    "accumulate": _accumulate,
    "parameter_step": _parameter_step,
}


@functools.cache
def count(case: Case, make: Callable[[], Runner] = Executor) -> Count:
    """Run a call on the executor, checked as every launch there is, and sum up its counters."""
    torch.manual_seed(0)
    executor = make()
    floor = OPS[case.op](case, executor)
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


def _steps(precisions: Sequence[str], dtypes: Sequence[torch.dtype], sides: Sequence[int]) -> list[Case]:
    return [Case("kron_step", t, side, p) for p in precisions for side in sides for t in dtypes]


STEPS = _steps(["bf16x3"], DTYPES, (64, 128, 256))
# Bytes do not depend on the precision, arithmetic and shared memory do.
ARITHMETIC = _steps(["tf32x3", "fp32"], DTYPES[:1], (64, 128, 256))
ELEMENTWISE = [Case(op, dtype) for op in ("accumulate", "parameter_step") for dtype in DTYPES]
CASES = [*STEPS, *ELEMENTWISE, *ARITHMETIC]
