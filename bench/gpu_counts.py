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
import test_kron_step
import test_parameter_step
from cuda import binaries, toolchain
from cuda.executor_backend import Executor
from inputs import square_root

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
TRACE: tuple[str, int] = ("trace", 0)
REFINED: tuple[str, int] = ("frobenius", 2)


@dataclass(frozen=True)
class Case:
    """A call to count.

    Attributes:
        side: of a step's blocks.
        rule: (scale, refine) of Triton's kron_step, (coupling, refine) of square_root_step.
    """

    op: str
    dtype: torch.dtype = torch.float32
    side: int = 0
    rule: tuple[str, int] = TRACE
    precision: str = "bf16x3"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        if self.op not in ("kron_step", "square_root_step"):
            return f"{self.op}, {dtype}"
        scale, refine = self.rule
        return f"{self.side} x {self.side}, {scale}, refine {refine}, {dtype} gradients, {self.precision}"


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
    lower_floor: int  # of symmetric matrices that are read, the lower half only
    mma: int
    shared_loads: int  # warp instructions
    conflicts_of_loads: int  # wavefronts of shared loads beyond the ideal
    wavefronts: int
    ideal_wavefronts: int


def has_floor(case: Case) -> bool:
    """Whether the floor knows all that a call passes through memory: not what Triton's refinement does."""
    return case.op != "kron_step" or case.side <= 128 or case.rule[1] == 0


def size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def lower_size(tensors: Sequence[Tensor]) -> int:
    """Bytes on and below the diagonals of square matrices."""
    return sum(size([t]) * (t.shape[-1] + 1) // (2 * t.shape[-1]) for t in tensors)


class TritonRunner(Runner, Protocol):
    """Triton's, which know their resident side and how many of their launches read the gradient."""

    resident_side: int
    gradient_launches: int


def _kron_step(case: Case, executor: TritonRunner) -> tuple[int, int]:
    given = test_kron_step.inputs(BLOCKS, case.side, case.side, case.dtype)
    given.direction = [view.float() for view in given.direction]  # the momentum's dtype
    scale, refine = case.rule
    test_kron_step.run(executor, given, factor_scale=scale, refine=refine, precision=case.precision)
    factors = [*given.left, *given.right]
    symmetric = [*factors, *given.left_root, *given.right_root]
    rest = size(given.grad) + size(given.direction) + size(factors) + size(given.out)
    # Three launches pass Y, Z^T and the half product through memory: written once and read once.
    # What several launches read is there again in each.
    passed = 6 * 4 * BLOCKS * case.side**2 + (executor.gradient_launches - 1) * size(given.grad)
    passed = 0 if case.side <= executor.resident_side else passed
    return rest + size(symmetric) + passed, rest + lower_size(symmetric) + passed


def _square_root_step(case: Case, executor: Runner) -> tuple[int, int]:
    """The floor is what the roofline takes a call to move."""
    coupling, refine = case.rule
    rule = replace(
        square_root.RULE,
        method="products",
        refine=refine,
        precision=case.precision,
        coupled=coupling == "coupled",
    )
    group = square_root.group(BLOCKS, (case.side, case.side), view_dtype=case.dtype)
    given = square_root.given([group], rule)
    given.active.fill_(True)
    square_root.run(executor, given)
    call = Call(rule, grad=case.dtype.itemsize, direction=case.dtype.itemsize)
    floor = int(sum(cost.bytes for cost in step_costs([Blocks(BLOCKS, case.side, case.side)], call)))
    return floor, floor


def _one_parameter(given: SimpleNamespace, kinds: dict[str, torch.dtype]) -> SimpleNamespace:
    """An elementwise op's arguments with one parameter in place of their own."""
    for name, dtype in kinds.items():
        setattr(given, name, [torch.rand(NUMEL).to(dtype)])
    given.coefficients, given.active = torch.ones(1, 4), torch.ones(1, dtype=torch.bool)
    return given


def _accumulate(case: Case, executor: Runner) -> tuple[int, int]:
    kinds = dict.fromkeys(("momenta", "second_moments", "directions"), torch.float32)
    kinds |= {"grads": case.dtype, "params": case.dtype}
    given = _one_parameter(test_accumulate.inputs(case.dtype), kinds)
    given.graft_norms = torch.zeros(1)
    test_accumulate.run(executor, given)
    floor = size(given.grads) + 2 * size([*given.momenta, *given.second_moments])
    return floor, floor


def _parameter_step(case: Case, executor: Runner) -> tuple[int, int]:
    kinds = dict.fromkeys(("momenta", "updates", "second_moments"), torch.float32)
    kinds |= {"params": case.dtype, "directions": case.dtype}
    given = _one_parameter(test_parameter_step.inputs(case.dtype), kinds)
    test_parameter_step.run(executor, given)
    floor = size(given.updates) + 2 * size(given.params)
    return floor, floor


OPS = {
    "kron_step": _kron_step,
    "square_root_step": _square_root_step,
    "accumulate": _accumulate,
    "parameter_step": _parameter_step,
}


@functools.cache
def count(case: Case, make: Callable[[], Runner] = Executor) -> Count:
    """Run a call on the executor, checked as every launch there is, and sum up its counters."""
    torch.manual_seed(0)
    executor = make()
    floor, lower_floor = OPS[case.op](case, executor)
    counters = [launch.counters for _, launch in executor.launches]

    def total(*names: str) -> int:
        return sum(c[name] for c in counters for name in names)

    loads = [v for c in counters for k, v in c.by_opcode.items() if k.startswith(("ld.shared", "ldmatrix"))]
    return Count(
        kernels=tuple(dict.fromkeys(name for name, _ in executor.launches)),
        footprint=total("footprint_read_bytes", "footprint_write_bytes"),
        requested=SECTOR * total("global_read_sectors", "global_write_sectors"),
        floor=floor,
        lower_floor=lower_floor,
        mma=total("mma"),
        shared_loads=sum(load["n"] for load in loads),
        conflicts_of_loads=sum(load["wavefronts"] - load["ideal"] for load in loads),
        wavefronts=total("shared_wavefronts"),
        ideal_wavefronts=total("shared_ideal_wavefronts"),
    )


DTYPES = (torch.float32, torch.bfloat16)
COUPLED: tuple[str, int] = ("coupled", 2)


def _steps(precisions: Sequence[str], dtypes: Sequence[torch.dtype], sides: Sequence[int]) -> list[Case]:
    return [
        Case("square_root_step", t, side, COUPLED, p) for p in precisions for side in sides for t in dtypes
    ]


STEPS = _steps(["bf16x3"], DTYPES, (64, 128, 256))
# Bytes do not depend on the precision, arithmetic and shared memory do.
ARITHMETIC = _steps(["tf32x3", "bf16x6", "fp32"], DTYPES[:1], (64, 128, 256))
ELEMENTWISE = [Case(op, dtype) for op in ("accumulate", "parameter_step") for dtype in DTYPES]
CASES = [*STEPS, *ELEMENTWISE, *ARITHMETIC]
TRITON = [Case("kron_step", torch.float32, 32, REFINED)]
TRITON += [Case("kron_step", dtype, 256, rule) for rule in (TRACE, REFINED) for dtype in DTYPES]
