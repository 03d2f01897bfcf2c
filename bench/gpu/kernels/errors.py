"""Errors of the CUDA kernels' factors and products against float64: the table of docs/kernels.md.

    python -m bench.gpu.kernels.errors                  # about ten minutes; --only 128: some rows

The PTX executor runs the kernels. An error is the largest relative Frobenius error of a block after one call.
Calls are coupled and uncoupled, on float32 and bfloat16 gradients that are contiguous, parts of a transposed
parameter, or have padding between rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from cuda.executor_backend import Executor, GroupedExecutor
from inputs import square_root

from bench.common import markdown_table
from bench.roofline.cuda_costs import SHARED_BYTES
from kradagrad_ext.backends import square_root as reference

Shapes = Sequence[tuple[int, int]]


class LargeExecutor(Executor):
    """A GPU whose CTAs have shared memory for three symmetric matrices."""

    shared_limit = SHARED_BYTES


SMALL: Shapes = ((64, 64), (40, 33), (17, 5))
ROWS: tuple[tuple[str, Shapes, str, type[Executor]], ...] = (
    ("64", SMALL, "bf16x3", LargeExecutor),
    ("96", ((96, 96), (80, 70), (65, 33)), "bf16x3", LargeExecutor),
    ("128", ((128, 128), (100, 70)), "bf16x3", LargeExecutor),
    ("256", ((140, 140), (192, 40), (130, 200)), "bf16x3", LargeExecutor),
    ("grouped", ((140, 140), (130, 60)), "bf16x3", GroupedExecutor),
    ("64", SMALL, "tf32x3", LargeExecutor),
    ("64", SMALL, "fp32", LargeExecutor),
)
REFINEMENTS = (1, 2, 3)
FIRST_REFINE = 4
"""`refine` of an update by a first gradient, before which F is a multiple of I."""
LAYOUTS = ("contiguous", "grid", "wide_rows")
DTYPES = (torch.float32, torch.bfloat16)


def calls(shapes: Shapes, precision: str, refine: int, first: bool = False) -> Iterator[square_root.Given]:
    """Yield the calls of a rule, coupled and uncoupled, on gradients of both dtypes and every layout."""
    for coupled, dtype, layout in product((False, True), DTYPES, LAYOUTS):
        torch.manual_seed(0)
        groups = [square_root.group(2, shape, layout, view_dtype=dtype) for shape in shapes]
        if first:
            for side in (side for group in groups for side in (group.left, group.right)):
                side.statistics.zero_()
        options = {"refine": refine, "coupled": coupled, "precision": precision}
        inputs = square_root.given(groups, replace(square_root.RULE, method="products", **options))
        inputs.scales.fill_(1)
        yield inputs


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the error of the worst block."""
    norm = torch.linalg.matrix_norm
    return (norm(ours.double() - exact) / norm(exact)).max().item()


def errors(inputs: square_root.Given, executor: type[Executor]) -> tuple[float, float]:
    """Return the largest errors of factors and of V."""
    ours = square_root.run(executor(races=False), square_root.copied(inputs))
    exact = square_root.run(reference, square_root.copied(inputs, torch.float64))
    pairs = list(zip(ours.groups, exact.groups, strict=True))
    factors = [(a.factor, b.factor) for g, h in pairs for a, b in ((g.left, h.left), (g.right, h.right))]
    products = [pair for g, h in pairs for pair in zip(g.out, h.out, strict=True)]
    return max(error(a, b) for a, b in factors), max(error(a, b) for a, b in products)


def row(shapes: Shapes, precision: str, executor: type[Executor]) -> Iterator[str]:
    """Yield the cells of a table row: the largest errors over all calls."""

    def most(refine: int, first: bool = False) -> tuple[float, float]:
        factors, products = zip(
            *(errors(inputs, executor) for inputs in calls(shapes, precision, refine, first)), strict=True
        )
        return max(factors), max(products)

    worst, started = [most(refine) for refine in REFINEMENTS], most(FIRST_REFINE, first=True)
    yield ", ".join(f"{m} x {n}" if m != n else f"{m}" for m, n in shapes)
    yield f"`{precision}`"
    yield ", ".join(f"{factor:.1e}" for factor, _ in worst)
    yield f"{started[0]:.1e}"
    yield f"{max(v for _, v in [*worst, started]):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted({name for name, *_ in ROWS}), help="rows of this name")
    options = parser.parse_args()
    columns = ("blocks", "precision", "factor, refine 1, 2, 3", f"first gradient, refine {FIRST_REFINE}", "V")
    rows = (row(*options_of_row) for name, *options_of_row in ROWS if options.only in (None, name))
    print(markdown_table(columns, map(tuple, rows)))


if __name__ == "__main__":
    main()
