"""Small calls of the ops that every mutant is run on, and their results in float64.

Tensors are copied with their storage, so that the NaN around strided views is there in every run: a kernel
that reads it gives NaN, one that writes it is found by comparing the storage.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cases
import test_accumulate
import test_kron_step
import test_parameter_step
import torch
from tolerances import assert_as_accurate, precision_atol
from torch import Tensor

from cuda.executor_backend import Executor
from kradagrad_ext.backends import reference

from . import square_root_probes

RULE: dict[str, Any] = {
    "decay": 0.9,
    "weight": 0.5,
    "damping": 1e-3,
    "factor_scale": "frobenius",
    "refine": 2,
    "precision": "bf16x3",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "kron_step_": {**RULE, "update": True},
    "update_factor_": RULE,
    "accumulate_": {"beta1": 0.9, "beta2": 0.99, "weight2": 0.01, "l2": 0.0, "nesterov": False},
    "parameter_step_": {"momentum": 0.9, "decay": 0.0, "l2": 0.0, "nesterov": False},
}
WRITTEN = {
    "kron_step_": ("left", "right", "left_statistics", "right_statistics", "out", "norms"),
    "update_factor_": ("factor", "statistics"),
    "accumulate_": ("momenta", "second_moments", "directions", "graft_norms"),
    "parameter_step_": ("params", "momenta"),
}


def in_place(tensor: Tensor) -> Tensor:
    """A copy with its whole storage."""
    storage = tensor.untyped_storage().clone()
    return tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def copied(given: SimpleNamespace, dtype: torch.dtype | None) -> SimpleNamespace:
    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(tensor) for tensor in value]
        if dtype and value.is_floating_point():
            return value.to(dtype, copy=True)
        return in_place(value)

    return SimpleNamespace(**{name: copy(value) for name, value in vars(given).items()})


def tensors(given: SimpleNamespace, name: str) -> list[Tensor]:
    value = getattr(given, name)
    return value if isinstance(value, list) else [value]


def surroundings(tensor: Tensor, written: bool) -> Tensor:
    """The bytes of a tensor's storage, without the tensor itself where an op writes it."""
    copy = in_place(tensor)
    if written:
        copy.zero_()
    return torch.empty(0, dtype=torch.uint8).set_(copy.untyped_storage())


@dataclass(frozen=True, eq=False)
class Probe:
    """One call of an op."""

    name: str
    op: str
    given: SimpleNamespace
    options: dict[str, Any]
    executor = Executor

    def run(self, backend: Any, dtype: torch.dtype | None = None) -> SimpleNamespace:
        result = copied(self.given, dtype)
        options = DEFAULTS[self.op] | self.options
        getattr(backend, self.op)(*vars(result).values(), *options.values())
        return result

    @functools.cached_property
    def expected(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        return self.run(reference), self.run(reference, torch.float64)

    @functools.cached_property
    def around(self) -> list[Tensor]:
        return self._around(self.given)

    def _around(self, given: SimpleNamespace) -> list[Tensor]:
        written = WRITTEN[self.op]
        return [surroundings(t, name in written) for name in vars(given) for t in tensors(given, name)]

    def check(self, ours: SimpleNamespace) -> None:
        """AssertionError where a result is not as accurate as it must be, or something else was written."""
        plain, exact = self.expected
        refine = (DEFAULTS[self.op] | self.options).get("refine", 0)
        for name in WRITTEN[self.op]:
            products = self.op in ("kron_step_", "update_factor_") and not name.endswith("statistics")
            atol = precision_atol("bf16x3", refine) if products else None
            trios = zip(*(tensors(of, name) for of in (ours, plain, exact)), strict=True)
            if "norms" in name:  # of blocks apart: a large one would hide another's
                trios = [trio for each in trios for trio in zip(*(t.split(1) for t in each), strict=True)]
            for i, (a, b, c) in enumerate(trios):
                assert_as_accurate(a, b, c, f"{name}[{i}]", atol)
        for before, after in zip(self.around, self._around(ours), strict=True):
            assert torch.equal(before, after), "memory around a result, or an input, was written"

    def same_bits(self, one: SimpleNamespace, other: SimpleNamespace) -> bool:
        return all(
            torch.equal(a, b)
            for name in WRITTEN[self.op]
            for a, b in zip(tensors(one, name), tensors(other, name), strict=True)
        )


def kron(
    n: int,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "strided",
    started: bool = False,
    **options: Any,
) -> Probe:
    """`started`: the factors have seen a gradient; else, with damping, they start at a multiple of I."""
    given = test_kron_step.inputs(n, rows, columns, dtype, layout)
    if layout == "transposed":  # that of test_kron_step has float64 alone
        for name in ("grad", "direction", "out"):
            setattr(given, name, [view.mT.contiguous().mT for view in getattr(given, name)])
    for statistics in (*given.left_statistics, *given.right_statistics):
        statistics[:, 0] = 0.7 if started else 0
    for name in ("left_root", "right_root"):
        setattr(given, name, [root.to(dtype) for root in getattr(given, name)])
    what = ", ".join(f"{key} {value}" for key, value in options.items())
    name = f"{n} of {rows} x {columns} {str(dtype)[6:]} {layout}, {what}"
    return Probe(name, "kron_step_", given, options)


def update_with_nan(n: int, d: int, k: int, **options: Any) -> Probe:
    """Factors alone, that have seen a gradient; the last column of the last one's is not finite."""
    unfolding = torch.randn(n, d, k) / math.sqrt(k)
    unfolding[-1, :, -1] = math.nan
    given = SimpleNamespace(
        factor=cases.spd(n, d, torch.float32),
        statistics=torch.tensor([[0.7, 0.0]]).repeat(n, 1),
        unfolding=[unfolding],
        active=torch.ones(n, dtype=torch.bool),
    )
    return Probe(f"{n} of {d} x {k}, {options}", "update_factor_", given, options)


def with_nan(probe: Probe) -> Probe:
    """The last element of the last block's gradient is not finite, so that its factors stay."""
    probe.given.grad[-1][..., -1, -1] = math.nan
    return probe


def resident() -> list[Probe]:
    """Rows start aligned only in the second and fourth; an inactive block lies in the first and third."""
    return [
        kron(3, 40, 33),
        kron(2, 33, 17, started=True, factor_scale="trace_dim", refine=1),
        kron(2, 56, 53, torch.bfloat16, factor_scale="product", refine=0),
        kron(2, 64, 52, layout="contiguous", factor_scale="schatten4", refine=3),
        kron(1, 7, 60, torch.bfloat16, "contiguous", started=True, damping=0.0, refine=3),
        kron(3, 17, 40, factor_scale="trace", refine=0),
        kron(2, 16, 16, layout="transposed", factor_scale="frobenius", refine=0),
    ]


def resident_chunks() -> list[Probe]:
    return [with_nan(kron(2, 20, 100, started=True)), kron(2, 100, 20, refine=0, factor_scale="trace")]


def grouped() -> list[Probe]:
    """No block that is smaller gets to the grouped products. One of the first probe's has no gradient."""
    first = kron(3, 130, 20)
    first.given.grad[0].zero_()
    return [
        first,
        kron(2, 20, 130, started=True, factor_scale="schatten4", refine=1),
        update_with_nan(2, 20, 150, factor_scale="trace", refine=1),
        kron(3, 7, 140, torch.bfloat16, factor_scale="trace", refine=0),
        kron(1, 130, 40, layout="transposed", started=True, factor_scale="product", refine=0),
        kron(1, 132, 64, layout="contiguous", factor_scale="trace_dim", refine=3),
        kron(1, 136, 24, torch.bfloat16, "contiguous", update=False),
        kron(1, 70, 130, started=True, refine=0),
    ]


def accumulate() -> list[Probe]:
    probes = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, ("directions",), {"l2": 0.1}),
        (torch.bfloat16, False, (), {"nesterov": True}),
        (torch.float32, True, ("momenta", "directions"), {"beta2": 1.0, "weight2": 1.0}),
        (torch.bfloat16, True, ("second_moments",), {"nesterov": True, "l2": 0.1}),
    ):
        given = test_accumulate.inputs(dtype, transposed)
        for name in missing:
            setattr(given, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        probes.append(Probe(name, "accumulate_", given, options))
    return probes


def parameter_step() -> list[Probe]:
    probes = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, (), {"nesterov": True, "l2": 0.1}),
        (torch.bfloat16, False, ("momenta",), {"decay": 0.1}),
        (torch.float32, True, ("second_moments",), {"decay": 0.1, "l2": 0.1}),
        (torch.bfloat16, True, (), {}),
    ):
        given = test_parameter_step.inputs(dtype, transposed)
        given.updates[4][:] = math.nan  # whose c3 is not finite
        for name in missing:
            setattr(given, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        probes.append(Probe(name, "parameter_step_", given, options))
    return probes


MAKERS = {
    "kron_step_resident_64_bf16x3": resident,
    "kron_step_resident_128_bf16x3": resident_chunks,
    "grouped_product_64_bf16x3": grouped,
    "start_factors": grouped,
    "finish_groups": grouped,
    "traces_of_squares": grouped,
    "square_root_product_64_bf16x3": square_root_probes.grouped,
    "gradient_norms": square_root_probes.grouped,
    "start_sides": square_root_probes.grouped,
    "finish_sides": square_root_probes.grouped,
    "finish_norms": square_root_probes.grouped,
    "resident_update_64_bf16x3": square_root_probes.resident,
    "resident_precondition_64_bf16x3": square_root_probes.resident,
    "accumulate": accumulate,
    "sum_spans": accumulate,
    "parameter_step": parameter_step,
}


@functools.cache
def _made(maker: Any) -> list[Probe]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return maker()


def of_kernel(name: str) -> list[Probe]:
    """The calls that run a kernel, always the same ones."""
    return _made(MAKERS[name])
