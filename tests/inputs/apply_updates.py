"""Inputs and declaration of `apply_updates_`: parameters of all kinds of shapes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS

from .op import Call, ElementwiseOp, Fault, Kernel, Refusal, size

SHAPES = [(), (1,), (0, 3), (7,), (33, 129), (5, 4, 3), (40_000,)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momenta": True},
    {"momenta": True, "nesterov": True},
    {"second_moments": False},
    {"decay": 0.1},
    {"added": 0.1, "momenta": True},
]


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        name: [torch.randn(shape).to(kind) for shape in SHAPES]
        for name, kind in (
            ("params", dtype),
            ("momenta", compute),
            ("residuals", torch.int16),
            ("updates", compute),
            ("directions", dtype),
            ("second_moments", compute),
        )
    }
    tensors["residuals"] = [torch.randint(-(2**15), 2**15, shape).short() for shape in SHAPES]
    if transposed:
        for name, values in tensors.items():
            tensors[name] = [cases.padded(t, name == "params") if t.ndim == 2 else t for t in values]
    for second_moment in tensors["second_moments"]:
        second_moment.abs_()
    tensors["updates"][5] = torch.empty(0, dtype=compute)
    inputs = SimpleNamespace(**tensors)
    inputs.coefficients = torch.rand(len(SHAPES), COEFFICIENTS, dtype=compute) + 0.1
    inputs.coefficients[4, 3] = math.nan
    inputs.coefficients[6, 5] = math.inf
    inputs.coefficients[:, 6] = 0
    inputs.active = torch.arange(len(SHAPES)) != 3
    inputs.lr = torch.tensor(0.3, dtype=compute)
    return inputs


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    result = cases.copied(inputs, dtype)
    for column, name in ((8, "added"), (9, "decay")):
        result.coefficients[:, column] *= options.pop(name, 0.0)
    for name in ("momenta", "residuals"):
        if not options.pop(name, False):
            setattr(result, name, [])
    if not options.pop("second_moments", True):
        result.second_moments = []
    return APPLY_UPDATES.call(backend, result, options)


def exact_inputs(count: int) -> SimpleNamespace:
    """Return bfloat16 parameters whose new values float32 holds exactly, in any order of operations.

    Args:
        count: the count that chance depends on; 0 for none.
    """
    inputs = make(torch.float32)
    for i, shape in enumerate(SHAPES):
        whole = torch.randint(-255, 256, shape)
        inputs.params[i] = whole.to(torch.bfloat16)
        inputs.updates[i] = torch.randint(-99, 100, shape) / 64
    inputs.coefficients[:] = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.25, count, 0.0, 0.0, 0.0])
    inputs.lr = torch.tensor(2.0**-7)
    return inputs


def of_one_parameter(given: SimpleNamespace) -> None:
    given.coefficients, given.active = torch.ones(1, COEFFICIENTS), torch.ones(1, dtype=torch.bool)


def sample() -> tuple[object, ...]:
    def some() -> list[torch.Tensor]:
        return [torch.rand(3, 4), torch.rand(7)]

    params, residuals = [value.bfloat16() for value in some()], [value.short() for value in some()]
    updates = [torch.rand(3, 4), torch.empty(0)]
    scalars = (torch.rand(2, COEFFICIENTS), torch.ones(2, dtype=torch.bool), torch.tensor(0.1), 0.9, False)
    return (params, some(), residuals, updates, some(), some(), *scalars)


def calls() -> list[Call]:
    made = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, ("residuals",), {"nesterov": True}),
        (torch.bfloat16, False, ("momenta", "residuals"), {}),
        (torch.float32, True, ("second_moments", "residuals"), {}),
        (torch.bfloat16, True, (), {}),
    ):
        given = make(dtype, transposed)
        given.updates[4][:] = math.nan  # the c3 of this parameter is not finite
        for name in missing:
            setattr(given, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        made.append(Call(name, given, options))
    for count, missing in ((5, ["momenta", "residuals"]), (0, ["momenta"])):
        given = exact_inputs(count)
        for name in missing:
            setattr(given, name, [])
        made.append(Call(f"exact, without {missing}", given, exact=True))
    return made


def _fault(name: str, old: str, new: str, *, layer: str = "values", file: str = "apply_updates.cu") -> Fault:
    return Fault(name, file, old, new, "apply_updates", layer)


FAULTS = [
    _fault(
        "no barrier after the parameter's entry was copied",
        "reinterpret_cast<const int*>(&parameter)[i];\n  }\n  __syncthreads();\n",
        "reinterpret_cast<const int*>(&parameter)[i];\n  }\n",
        layer="race",
        file="elementwise.cuh",
    ),
    _fault(
        "a tail treated as a whole round",
        "begin + Whole::kRound <= end",
        "begin < end",
        layer="bounds",
        file="elementwise.cuh",
    ),
    _fault(
        "a tail left out",
        "i = begin + threadIdx.x; i < end;",
        "i = begin + threadIdx.x; i < begin;",
        file="elementwise.cuh",
    ),
    _fault(
        "a transposed parameter treated as flat",
        "parameter.flat && begin",
        "begin",
        layer="race",
        file="elementwise.cuh",
    ),
    _fault("inactive parameters take part", "  if (!in.active[index]) return;\n", ""),
    _fault("an update with a scale that is not finite", "of.update.data && isfinite(c[3])", "of.update.data"),
    _fault("nesterov's term missing", "in.nesterov ? u[i] + in.momentum * b[i] : b[i]", "b[i]"),
    _fault("weight decay missing", "(1 - lr * c[9]) * p[i]", "p[i]"),
    _fault(
        "spans of different blocks overlap",
        "const int64_t end = min(begin + kSpan, parameter.numel);",
        "const int64_t end = min(begin + kSpan + 4, parameter.numel);",
        layer="race",
        file="elementwise.cuh",
    ),
    _fault("no bound", "u[i] > c[5] ? c[5] : u[i]", "u[i]"),
    _fault("added weight decay missing", "u[i] += c[8] * p[i]", "u[i] += 0"),
    _fault(
        "chance without the count",
        "chances[i] = seed ^ __float_as_uint(p[i])",
        "chances[i] = __float_as_uint(p[i])",
    ),
    _fault("chance of fifteen bits", "mixed & 0xffffu", "mixed & 0x7fffu"),
    _fault("residuals that are not added", "p[i] != 0 ? static_cast<int16_t>(residuals[i]) : 0", "0"),
    _fault("residuals that are never negative", "(bits + 0x8000u) & 0xffff0000u", "bits & 0xffff0000u"),
]

APPLY_UPDATES = ElementwiseOp(
    "apply_updates_",
    sample,
    [
        Refusal(2, [torch.zeros(3, 4), torch.zeros(7)], "`residuals"),
        Refusal(3, [torch.zeros(3, 3), torch.zeros(7)], "`updates"),
        Refusal(8, torch.zeros(2), "`lr` must be"),
    ],
    {"apply_updates": Kernel("apply_updates", 4, swept=True)},
    make=make,
    options=OPTIONS,
    run=run,
    written=("params", "momenta", "residuals"),
    scalars={"momentum": 0.9, "nesterov": False},
    kinds=dict.fromkeys(("momenta", "updates", "second_moments"), torch.float32)
    | dict.fromkeys(("params", "directions")),
    adapt=of_one_parameter,
    floor=lambda given: size(given.updates) + 2 * size(given.params),
    calls=calls,
    faults=FAULTS,
    on_triton=True,
)
OPS = (APPLY_UPDATES,)
