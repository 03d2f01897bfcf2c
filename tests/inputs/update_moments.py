"""Inputs and declaration of `update_moments_`: parameters of all kinds of shapes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import spans_of, sums_of

from .op import Call, ElementwiseOp, Fault, Kernel, Refusal, size

SHAPES = [(), (1,), (0, 3), (7,), (33, 129), (5, 4, 3), (40_000,)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": True},
    {"momenta": False},
    {"second_moments": False},
    {"decay": 0.1},
    {"beta2": 1.0, "weight2": 1.0},
]


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def tensors(
        positive: bool = False, kind: torch.dtype = compute, as_parameter: bool = False
    ) -> list[torch.Tensor]:
        """With `transposed`, pad matrices, and store parameters and gradients by columns."""
        values = [torch.randn(shape).to(kind) for shape in SHAPES]
        values = [t.abs() for t in values] if positive else values
        return [cases.padded(t, as_parameter) if transposed and t.ndim == 2 else t for t in values]

    count = len(SHAPES)
    return SimpleNamespace(
        momenta=tensors(),
        second_moments=tensors(positive=True),
        directions=tensors(),
        graft_norms=torch.full((sum(spans_of(math.prod(shape)) for shape in SHAPES),), 3.0, dtype=compute),
        grads=tensors(kind=dtype, as_parameter=True),
        params=tensors(kind=dtype, as_parameter=True),
        coefficients=torch.rand(count, COEFFICIENTS, dtype=compute) + 0.1,
        active=torch.arange(count) != 3,
    )


def add_up_(graft_norms: torch.Tensor, params: list[torch.Tensor]) -> None:
    """Put a parameter's norm in its first span, as the reference does: the spans' elements are open."""
    if not len(graft_norms):
        return
    offsets = list(itertools.accumulate((spans_of(p.numel()) for p in params), initial=0))
    sums = sums_of(graft_norms, torch.tensor(offsets))
    graft_norms.zero_()
    for p, first, norm in zip(params, offsets, sums, strict=False):
        if p.numel():
            graft_norms[first] = norm


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    result = cases.copied(inputs, dtype)
    result.coefficients[:, 7] *= options.pop("decay", 0.0)
    for name in ("momenta", "second_moments"):
        if not options.pop(name, True):
            setattr(result, name, [])
    if not options.get("nesterov"):
        result.directions = []
    return UPDATE_MOMENTS.call(backend, result, options)


def of_one_parameter(given: SimpleNamespace) -> None:
    given.coefficients, given.active = torch.ones(1, COEFFICIENTS), torch.ones(1, dtype=torch.bool)
    given.graft_norms = torch.zeros(sum(spans_of(param.numel()) for param in given.params))


def sample() -> tuple[object, ...]:
    lists = [[torch.rand(3, 4), torch.rand(7)] for _ in range(5)]
    scalars = (torch.rand(2, COEFFICIENTS), torch.ones(2, dtype=torch.bool), 0.9, 0.99, 0.01, True)
    return (*lists[:3], torch.zeros(2), *lists[3:], *scalars)


def calls() -> list[Call]:
    made = []
    for dtype, transposed, missing, options in (
        (torch.float32, False, ("directions",), {}),
        (torch.bfloat16, False, (), {"nesterov": True}),
        (torch.float32, True, ("momenta", "directions"), {"beta2": 1.0, "weight2": 1.0}),
        (torch.bfloat16, True, ("second_moments",), {"nesterov": True}),
    ):
        given = make(dtype, transposed)
        for name in missing:
            setattr(given, name, [])
        name = f"{str(dtype)[6:]}{', transposed' * transposed}, without {missing}, {options}"
        made.append(Call(name, given, options))
    return made


def _fault(name: str, old: str, new: str, *, layer: str = "values", file: str = "update_moments.cu") -> Fault:
    return Fault(name, file, old, new, "update_moments", layer)


FAULTS = [
    _fault(
        "no barrier before the warps' sums are read",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
        layer="race",
        file="reduce.cuh",
    ),
    _fault(
        "nesterov's second term missing",
        "i < kElements && in.nesterov; ++i",
        "i < kElements && in.nesterov && false; ++i",
    ),
    _fault("the gradient's scale left out", "g[i] *= c[3];", "g[i] *= 1;"),
    _fault("weight decay left out", "if (c[7] != 0) {", "if (false) {"),
    _fault("inactive parameters take part", "if (!in.active[index]) {", "if (false) {"),
    _fault(
        "the norm of another span",
        "in.graft_norms[span] = sum;",
        "in.graft_norms[span / 2] = sum;",
        layer="race",
    ),
    _fault(
        "the first spans alone", "span < in.spans; span += gridDim.x", "span < gridDim.x; span += gridDim.x"
    ),
    _fault(
        "the norm of an inactive parameter left as it was",
        "in.graft_norms[span] = 0;",
        "in.graft_norms[span] = in.graft_norms[span];",
    ),
    _fault("the second moment in the previous unit", "in.beta2 * c[4] * c[4]", "in.beta2 * c[4]"),
    _fault("the momentum in the previous unit", "in.beta1 * c[4]", "in.beta1"),
]

UPDATE_MOMENTS = ElementwiseOp(
    "update_moments_",
    sample,
    [
        Refusal(3, torch.zeros(3), "`graft_norms` must be [2] float32"),
        Refusal(4, [torch.zeros(3, 4)], "`grads` must"),
        Refusal(6, torch.zeros(2, 3), "`coefficients` must be"),
    ],
    {"update_moments": Kernel("update_moments", 4, swept=True)},
    make=make,
    options=OPTIONS,
    run=run,
    written=("momenta", "second_moments", "directions", "graft_norms"),
    scalars={"beta1": 0.9, "beta2": 0.99, "weight2": 0.01, "nesterov": False},
    kinds=dict.fromkeys(("momenta", "second_moments", "directions"), torch.float32)
    | dict.fromkeys(("grads", "params")),
    adapt=of_one_parameter,
    floor=lambda given: size(given.grads) + 2 * size([*given.momenta, *given.second_moments]),
    finish=lambda result: add_up_(result.graft_norms, result.params),
    calls=calls,
    faults=FAULTS,
    on_triton=True,
)
OPS = (UPDATE_MOMENTS,)
