"""Declarations of ops: all that tests and benches know of an op, said once, in the file of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Kernel:
    """A CUDA kernel.

    Attributes:
        source: stem of its file in csrc/cuda/kernels.
        least_ctas: number of its CTAs that must fit an SM; its launch bounds require the same or fewer.
        swept: True if the sweep over single edits of PTX includes it.
    """

    source: str
    least_ctas: int
    swept: bool = False


@dataclass(frozen=True)
class Fault:
    """A replacement of `old`, which occurs once in `file`, by `new`; the checks of `layer` must notice it."""

    name: str
    file: str
    old: str
    new: str
    kernel: str
    layer: str


@dataclass(frozen=True)
class Refusal:
    """A value of the argument `position` that the op refuses, and the error's text after the op's name."""

    position: int
    value: object
    message: str


@dataclass(frozen=True)
class Call:
    """A small call that runs every fault of the op's kernels.

    Attributes:
        given: the tensors.  options: arguments besides the tensors that differ from the op's `scalars`.
        exact: True if arithmetic is exact in any order, so that the reference's bits are expected.
    """

    name: str
    given: SimpleNamespace
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = False


@dataclass(frozen=True)
class Op:
    """An op of `Backend`.

    Attributes:
        name: the op's name in its schema.
        sample: makes small arguments in the schema's order; None if the op has no CPU kernel.
        kernels: its CUDA kernels by name.
    """

    name: str
    sample: Callable[[], tuple[object, ...]] | None = None
    refusals: Sequence[Refusal] = ()
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TensorOp(Op):
    """An op whose arguments are tensors and lists of tensors, and then numbers.

    Attributes:
        make: makes the tensors in the schema's order from a dtype and True if matrices are to be transposed.
        options: keywords of `run` that every backend is tested with.
        run: calls the op of a backend on copies, in another dtype if one is given, and returns them.
        written: names of the tensors that the op writes.
    """

    make: Callable[..., SimpleNamespace]
    options: Sequence[dict[str, Any]]
    run: Callable[..., SimpleNamespace]
    written: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ScalarOp(TensorOp):
    """An op on the scalars of matrices.

    Attributes:
        rows: returns the inputs of some of the matrices, which may be repeated.
    """

    rows: Callable[[SimpleNamespace, torch.Tensor], SimpleNamespace]


@dataclass(frozen=True, kw_only=True)
class ElementwiseOp(TensorOp):
    """An op on the elements of all parameters, whose plan is in csrc/cuda/plan/elementwise_plan.cpp.

    Attributes:
        scalars: the numbers of a usual call by name, in the schema's order.
        kinds: dtypes of the lists of tensors in a call of one parameter; None for that of gradients.
        adapt: changes the single tensors of such a call to those of one parameter.
        floor: bytes that a call must read and write, from its tensors.
        finish: changes results that a backend is free to choose into those of the reference.
        calls: makes calls on which every fault must show.
        faults: those in the CUDA kernel's source.
        on_triton: True if there is a Triton kernel.
    """

    scalars: Mapping[str, Any]
    kinds: Mapping[str, torch.dtype | None]
    adapt: Callable[[SimpleNamespace], None]
    floor: Callable[[SimpleNamespace], int]
    finish: Callable[[SimpleNamespace], None] = lambda result: None
    calls: Callable[[], list[Call]]
    faults: Sequence[Fault] = ()
    on_triton: bool = False

    def call(self, backend: Any, given: SimpleNamespace, options: Mapping[str, Any]) -> SimpleNamespace:
        """Call the op on these tensors, which it changes, and return them."""
        getattr(backend, self.name)(*vars(given).values(), *(dict(self.scalars) | options).values())
        self.finish(given)
        return given

    def one_parameter(self, dtype: torch.dtype, numel: int) -> SimpleNamespace:
        """Return the tensors of a call of one parameter whose gradients have a dtype."""
        given = self.make(dtype)
        for name, value in vars(given).items():
            if isinstance(value, list):
                setattr(given, name, [])
        for name, kind in self.kinds.items():
            setattr(given, name, [torch.rand(numel).to(kind or dtype)])
        self.adapt(given)
        return given


def size(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident_kernels(half: str, swept: bool) -> dict[str, Kernel]:
    """Return the kernels of blocks that stay in shared memory, of one half of a step or of the roots.

    Args:
        swept: True if the sweep over edits of PTX includes the smallest one of the default precision.
    """
    precisions = {64: ("bf16x3", "tf32x3", "fp32"), 96: ("bf16x3",), 128: ("bf16x3", "tf32x3", "fp32")}
    return {
        f"resident_{half}_{side}_{precision}": Kernel(
            f"resident_{half}",
            least_ctas=2 if side == 64 and precision != "tf32x3" else 1,
            swept=swept and (side, precision) == (64, "bf16x3"),
        )
        for side, served in precisions.items()
        for precision in served
    }
