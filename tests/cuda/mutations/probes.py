"""Small calls of the ops that every mutant is run on, and their results in float64.

Tensors are copied with their storage, so that every run has the NaN around strided views: a kernel that reads
it gives NaN, and comparing the storage reveals a kernel that writes it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import inputs
import torch
from inputs.op import ElementwiseOp, ScalarOp
from tolerances import assert_as_accurate
from torch import Tensor

from cuda.executor_backend import Executor
from kradagrad_ext.backends import reference

from . import root_probes, scalar_probes, square_root_probes


def in_place(tensor: Tensor) -> Tensor:
    """Return a copy with its whole storage."""
    storage = tensor.untyped_storage().clone()
    return tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def copied(inputs: SimpleNamespace, dtype: torch.dtype | None) -> SimpleNamespace:
    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(tensor) for tensor in value]
        if dtype and value.is_floating_point():
            return value.to(dtype, copy=True)
        return in_place(value)

    return SimpleNamespace(**{name: copy(value) for name, value in vars(inputs).items()})


def tensors(inputs: SimpleNamespace, name: str) -> list[Tensor]:
    value = getattr(inputs, name)
    return value if isinstance(value, list) else [value]


def surroundings(tensor: Tensor, written: bool) -> Tensor:
    """Return the bytes of a tensor's storage; zeros in place of the tensor itself if an op writes it."""
    copy = in_place(tensor)
    if written:
        copy.zero_()
    return torch.empty(0, dtype=torch.uint8).set_(copy.untyped_storage())


@dataclass(frozen=True, eq=False)
class Probe:
    """One call of an op, with its tensors by name and its other arguments."""

    name: str
    op: ElementwiseOp
    given: SimpleNamespace
    options: dict[str, Any]
    executor = Executor

    def run(self, backend: Any, dtype: torch.dtype | None = None) -> SimpleNamespace:
        return self.op.call(backend, copied(self.given, dtype), self.options)

    @functools.cached_property
    def expected(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        return self.run(reference), self.run(reference, torch.float64)

    @functools.cached_property
    def around(self) -> list[Tensor]:
        return self._around(self.given)

    def _around(self, inputs: SimpleNamespace) -> list[Tensor]:
        written = self.op.written
        return [surroundings(t, name in written) for name in vars(inputs) for t in tensors(inputs, name)]

    def check(self, ours: SimpleNamespace) -> None:
        """Raise AssertionError if a result is not accurate enough or other memory was written."""
        plain, exact = self.expected
        for name in self.op.written:
            trios = zip(*(tensors(result, name) for result in (ours, plain, exact)), strict=True)
            # `ExactProbe` checks whole numbers.
            trios = [trio for trio in trios if trio[0].is_floating_point()]
            if "norms" in name:  # each span apart: a large norm would hide another's error
                trios = [part for trio in trios for part in zip(*(t.split(1) for t in trio), strict=True)]
            for i, (a, b, c) in enumerate(trios):
                assert_as_accurate(a, b, c, f"{name}[{i}]")
        for before, after in zip(self.around, self._around(ours), strict=True):
            assert torch.equal(before, after), "memory around a result, or an input, was written"

    def same_bits(self, one: SimpleNamespace, other: SimpleNamespace) -> bool:
        return all(
            torch.equal(a, b)
            for name in self.op.written
            for a, b in zip(tensors(one, name), tensors(other, name), strict=True)
        )


class ExactProbe(Probe):
    """A probe whose arithmetic is exact in every order, so that the reference's bits are expected."""

    def check(self, ours: SimpleNamespace) -> None:
        super().check(ours)
        plain, _ = self.expected
        assert self.same_bits(ours, plain)


def of(op: ElementwiseOp) -> list[Probe]:
    """Return an op's declared calls."""
    kinds = {False: Probe, True: ExactProbe}
    return [kinds[call.exact](call.name, op, call.given, call.options) for call in op.calls()]


MAKERS = {
    "square_root_product_64_tf32x3": square_root_probes.grouped,
    "gradient_norms": square_root_probes.grouped,
    "start_sides": square_root_probes.grouped,
    "finish_sides": square_root_probes.grouped,
    "finish_norms": square_root_probes.grouped,
    "resident_update_64_bf16x3": square_root_probes.resident,
    "resident_precondition_64_bf16x3": square_root_probes.resident,
    "resident_root_64_bf16x3": root_probes.small,
    "wide_update": square_root_probes.wide,
    "wide_precondition": square_root_probes.wide,
    "wide_root": root_probes.wide,
    **{
        kernel: functools.partial(make, op)
        for kind, make in ((ScalarOp, scalar_probes.of), (ElementwiseOp, of))
        for op in inputs.ops().values()
        if isinstance(op, kind)
        for kernel in op.kernels
    },
    **{
        f"resident_{stage}_{side}_bf16x3": functools.partial(maker, side)
        for stage, maker in (
            ("update", square_root_probes.long),
            ("precondition", square_root_probes.long),
            ("root", root_probes.large),
        )
        for side in (96, 128)
    },
    **{
        f"resident_root_64_{precision}": functools.partial(root_probes.small, precision)
        for precision in ("tf32x3", "fp32")
    },
}


@functools.cache
def _made(maker: Any) -> list[Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return maker()


def of_kernel(name: str) -> list[Any]:
    """Return the calls that run a kernel; the same ones each time."""
    return _made(MAKERS[name])
