"""Small calls of the ops that every mutant is run on, and their results in float64.

Tensors are copied with their storage, so that every run has the NaN around strided views: a kernel that reads
it gives NaN, and comparing the storage reveals a kernel that writes it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from inputs import apply_updates as apply_updates_inputs
from inputs import update_moments as update_moments_inputs
from tolerances import assert_as_accurate
from torch import Tensor

from cuda.executor_backend import Executor
from kradagrad_ext.backends import reference

from . import root_probes, scalar_probes, square_root_probes

DEFAULTS: dict[str, dict[str, Any]] = {
    "update_moments_": {"beta1": 0.9, "beta2": 0.99, "weight2": 0.01, "nesterov": False},
    "apply_updates_": {"momentum": 0.9, "nesterov": False},
}
WRITTEN = {
    "update_moments_": ("momenta", "second_moments", "directions", "graft_norms"),
    "apply_updates_": ("params", "momenta", "residuals"),
}


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
    op: str
    given: SimpleNamespace
    options: dict[str, Any]
    executor = Executor

    def run(self, backend: Any, dtype: torch.dtype | None = None) -> SimpleNamespace:
        result = copied(self.given, dtype)
        options = DEFAULTS[self.op] | self.options
        getattr(backend, self.op)(*vars(result).values(), *options.values())
        if self.op == "update_moments_":
            update_moments_inputs.add_up_(result.graft_norms, result.params)
        return result

    @functools.cached_property
    def expected(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        return self.run(reference), self.run(reference, torch.float64)

    @functools.cached_property
    def around(self) -> list[Tensor]:
        return self._around(self.given)

    def _around(self, inputs: SimpleNamespace) -> list[Tensor]:
        written = WRITTEN[self.op]
        return [surroundings(t, name in written) for name in vars(inputs) for t in tensors(inputs, name)]

    def check(self, ours: SimpleNamespace) -> None:
        """Raise AssertionError if a result is not accurate enough or other memory was written."""
        plain, exact = self.expected
        for name in set(WRITTEN[self.op]) - {
            "residuals"
        }:  # residuals are whole numbers, which `ExactProbe` checks
            trios = zip(*(tensors(result, name) for result in (ours, plain, exact)), strict=True)
            if "norms" in name:  # each span apart: a large norm would hide another's error
                trios = [part for trio in trios for part in zip(*(t.split(1) for t in trio), strict=True)]
            for i, (a, b, c) in enumerate(trios):
                assert_as_accurate(a, b, c, f"{name}[{i}]")
        for before, after in zip(self.around, self._around(ours), strict=True):
            assert torch.equal(before, after), "memory around a result, or an input, was written"

    def same_bits(self, one: SimpleNamespace, other: SimpleNamespace) -> bool:
        return all(
            torch.equal(a, b)
            for name in WRITTEN[self.op]
            for a, b in zip(tensors(one, name), tensors(other, name), strict=True)
        )


class ExactProbe(Probe):
    """A probe whose arithmetic is exact in every order, so that the reference's bits are expected."""

    def check(self, ours: SimpleNamespace) -> None:
        super().check(ours)
        plain, _ = self.expected
        assert self.same_bits(ours, plain)


def update_moments() -> list[Probe]:
    probes = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, ("directions",), {}),
        (torch.bfloat16, False, (), {"nesterov": True}),
        (torch.float32, True, ("momenta", "directions"), {"beta2": 1.0, "weight2": 1.0}),
        (torch.bfloat16, True, ("second_moments",), {"nesterov": True}),
    ):
        inputs = update_moments_inputs.make(dtype, transposed)
        for name in missing:
            setattr(inputs, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        probes.append(Probe(name, "update_moments_", inputs, options))
    return probes


def apply_updates() -> list[Probe]:
    probes = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, ("residuals",), {"nesterov": True}),
        (torch.bfloat16, False, ("momenta", "residuals"), {}),
        (torch.float32, True, ("second_moments", "residuals"), {}),
        (torch.bfloat16, True, (), {}),
    ):
        inputs = apply_updates_inputs.make(dtype, transposed)
        inputs.updates[4][:] = math.nan  # the c3 of this parameter is not finite
        for name in missing:
            setattr(inputs, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        probes.append(Probe(name, "apply_updates_", inputs, options))
    for count, missing in ((5, ["momenta", "residuals"]), (0, ["momenta"])):
        inputs = apply_updates_inputs.exact_inputs(count)
        for name in missing:
            setattr(inputs, name, [])
        probes.append(ExactProbe(f"exact, without {missing}", "apply_updates_", inputs, {}))
    return probes


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
    "guard_gradients": scalar_probes.guard_gradients,
    "scale_updates": scalar_probes.scale,
    "update_moments": update_moments,
    "apply_updates": apply_updates,
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
