"""Error of matrix roots against float64 over the condition number, for docs/numerics.md.

    python -m bench.ops.roots_accuracy        # prints Markdown, appends to a CSV in build/bench
    python -m bench.ops.roots_accuracy --record        # appends to that of bench/results

Factors are F = Q diag(l^(1/2)) R^T with orthogonal Q and R, rounded to the dtype. The eigenvalues l of
X = F F^T are spaced evenly in log from 1 to 1 / condition. The true root is Q diag(l^(1/p)) Q^T in float64,
so the error includes the rounding of F.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.common import Row, add_record_option, append_rows, benchmarks_csv, percentiles
from kradagrad_ext.decomposed_roots import decomposed_roots
from kradagrad_ext.roots import RESIDUAL_BOUND, roots_by_products

SIDE, SAMPLES = 128, 5
CONDITIONS = [10.0**exponent for exponent in range(13)]
ORDERS = (2, 4)
METHODS = {"eigh": decomposed_roots, "polar": roots_by_products}


@dataclass(frozen=True)
class Arithmetic:
    """The dtypes in which a root is computed and stored."""

    name: str
    compute: torch.dtype
    store: torch.dtype


ARITHMETICS = (
    Arithmetic("float64", torch.float64, torch.float64),
    Arithmetic("float32", torch.float32, torch.float32),
    Arithmetic("float32, stored bfloat16", torch.float32, torch.bfloat16),
)


def factors(condition: float) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``[d]``, and Q and R ``[2, N, d, d]``, float64."""
    source = torch.Generator().manual_seed(0)
    square = torch.randn(2, SAMPLES, SIDE, SIDE, dtype=torch.float64, generator=source)
    values = condition ** -torch.linspace(0, 1, SIDE, dtype=torch.float64)
    return values, torch.linalg.qr(square).Q


def errors(condition: float, p: int, method: str, arithmetic: Arithmetic) -> tuple[list[float], bool]:
    """Return the relative Frobenius error of every sample, and True if the check would refuse a root."""
    values, (vectors, right) = factors(condition)
    f = (vectors * values.sqrt()) @ right.mT
    want = (vectors * values ** (1 / p)) @ vectors.mT
    got, residual = METHODS[method](f.to(arithmetic.compute), p)
    difference = got.to(arithmetic.store).double() - want
    relative = difference.flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
    return relative.tolist(), not bool((residual <= RESIDUAL_BOUND).all())


def print_table(p: int) -> Iterator[Row]:
    """Print one line per condition and yield its rows."""
    columns = [(method, arithmetic) for method in METHODS for arithmetic in ARITHMETICS]
    print(f"\nX^(1/{p}):\n")
    print("| condition | " + " | ".join(f"{method}, {a.name}" for method, a in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for condition in CONDITIONS:
        cells = []
        for method, arithmetic in columns:
            samples, refused = errors(condition, p, method, arithmetic)
            spread = percentiles(samples)
            cells.append(f"{spread[1]:.0e}" + ("*" if refused else ""))
            shape = f"{SIDE}x{SIDE} condition {condition:.0e}"
            op = f"root 1/{p} {method}"
            yield Row(op, "torch", arithmetic.name, shape, SAMPLES, "relative_error", *spread)
        print(f"| {condition:.0e} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_record_option(parser, "bench/results/benchmarks.csv")
    options = parser.parse_args()
    rows = [row for p in ORDERS for row in print_table(p)]
    print(f"\n`*`: the residual is above {RESIDUAL_BOUND:g}, and the optimizer would keep the old root.")
    append_rows(rows, benchmarks_csv(options.record))


if __name__ == "__main__":
    main()
