"""Steps of many parameters: the cost of state and group bookkeeping, and of each small parameter.

    python -m bench.steps.many_parameters                    # prints Markdown

The first table has 1,000 parameters of a transformer, by its width. In the second, one parameter gets its
first gradient on each step; the table shows the time that this joining adds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn import Parameter

from bench.common import seconds_of
from bench.steps.host_time import LAYER
from kradagrad_ext import KrADagrad
from kradagrad_ext.engine import GroupBatches, LocalEngine

WIDTHS = (1, 2, 4, 8)
"""Multiples of the shapes of `host_time.LAYER`."""

JOINING = (50, 100, 200, 400)


def parameters(shapes: Sequence[tuple[int, ...]], count: int) -> list[Parameter]:
    return [Parameter(torch.randn(shape)) for shape in itertools.islice(itertools.cycle(shapes), count)]


def set_gradients(params: list[Parameter]) -> None:
    for p in params:
        p.grad = torch.randn_like(p)


@contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """Yield a list that gets the seconds of every call of a method."""
    spent: list[float] = []
    original = getattr(owner, name)

    def instead(*arguments: object) -> object:
        results = []
        spent.append(seconds_of(lambda: results.append(original(*arguments))))
        return results[0]

    with mock.patch.object(owner, name, instead):
        yield spent


def comparison(width: int, count: int, steps: int) -> str:
    shapes = [tuple(width * side for side in shape) for shape in LAYER]
    params = parameters(shapes, count)
    optimizer = KrADagrad(params, block_size=128)
    whole = []
    with timed(GroupBatches, "tensors") as spent:
        for _ in range(steps + 2):
            set_gradients(params)
            whole.append(seconds_of(optimizer.step))
    compared, step = statistics.median(spent[1:]), statistics.median(whole[2:])
    return f"| {32 * width} | {1e3 * compared:.2f} | {1e3 * step:.1f} | {compared / step:.2%} |"


def joining(count: int) -> str:
    params = parameters([(64, 64)], count)
    optimizer = KrADagrad(params, block_size=64)
    whole = 0.0
    with timed(LocalEngine, "_extended") as spent:
        for last in range(1, count + 1):
            set_gradients(params[:last])
            whole += seconds_of(optimizer.step)
    each = 1e3 * sum(spent) / count
    return f"| {count} | {whole:.2f} | {sum(spent):.2f} | {each:.2f} | {sum(spent) / whole:.1%} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    print(
        f"| width of {options.parameters} parameters | comparison, ms | step, ms | share |\n|---|---|---|---|"
    )
    for width in WIDTHS:
        print(comparison(width, options.parameters, options.steps), flush=True)
    print("\n| join one by one | steps, s | joining, s | each, ms | share |\n|---|---|---|---|---|")
    for count in JOINING:
        print(joining(count), flush=True)


if __name__ == "__main__":
    main()
