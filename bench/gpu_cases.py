"""What `gpu_kernels.py` runs: every op with its inputs, prediction, rivals and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import relative_error
from gpu_inputs import (
    KRON_WRITES,
    Arguments,
    Recipe,
    Source,
    bmm_products,
    copied,
    elementwise_arguments,
    kron_arguments,
    update_arguments,
)
from gpu_timing import Calls, tf32
from torch import Tensor

from kradagrad_ext.backends import resolve
from kradagrad_ext.cost.gpus import Cost
from kradagrad_ext.cost.launches import before_blocks, kron_step_costs, parameter_step_costs
from kradagrad_ext.cost.parameters import DTYPES, make_config
from kradagrad_ext.cost.products import Rule
from kradagrad_ext.plan import Group, group_blocks, plan_parameter

ERROR_BOUNDS = {"bf16x3": 1e-3, "tf32x3": 1e-4, "bf16x6": 1e-4, "fp32": 1e-4}
"""Largest relative Frobenius error against float64: two-term bf16 is good for 2^-16 a product."""

SIDES = (64, 128, 256, 512, 1024)
MEASURED = (4096, 4096)
VERIFIED = (512, 512)
RAGGED = [(128, 128), (100, 70), (256, 256), (192, 40), (300, 200), (64, 64), (17, 5)]


@dataclass(frozen=True)
class Case:
    """An op's call.

    Attributes:
        op: the backend's function.  arguments: its keywords.  writes: names of those it writes.
        shape: of a block or of the parameters.  blocks: how many.  recipe: what else varies.
        costs: of the roofline.  bound: on the relative error of each result.
    """

    op: str
    arguments: Arguments
    writes: tuple[str, ...]
    shape: str
    blocks: int
    recipe: Recipe
    costs: tuple[Cost, ...] = ()
    bound: float = 1e-4

    @property
    def label(self) -> str:
        # Elementwise ops know nothing of factors.
        detail = [self.recipe.label] if "precision" in self.arguments else []
        return " ".join([self.op, self.shape, self.recipe.dtype, *detail])

    def call(self, backend: str, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
        device = torch.device("cuda")
        function = getattr(resolve(backend, device, dtype), self.op)
        return lambda: function(**self.arguments)

    def results(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """What the op writes on a copy of its arguments."""
        arguments = {name: copied(value, dtype) for name, value in self.arguments.items()}
        function = getattr(resolve(backend, torch.device("cuda"), dtype or torch.float32), self.op)
        function(**arguments)
        return self.written(arguments)

    def written(self, arguments: Arguments) -> list[Tensor]:
        lists = [arguments[name] for name in self.writes]
        return [tensor for item in lists for tensor in (item if isinstance(item, list) else [item])]

    def replayed(self, backend: str) -> list[Tensor]:
        """What the op writes on a copy, captured in a CUDA graph on another stream and replayed once."""
        arguments = {name: copied(value) for name, value in self.arguments.items()}
        function = getattr(resolve(backend, torch.device("cuda"), torch.float32), self.op)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(**arguments)  # compiles and makes plans
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            function(**arguments)
        for tensor, before in zip(self.written(arguments), self.written(self.arguments), strict=True):
            tensor.copy_(before)
        graph.replay()
        torch.cuda.synchronize()
        return self.written(arguments)

    def error(self, backend: str) -> float:
        """The largest relative error of a result against the float64 reference."""
        pairs = zip(self.results(backend), self.results("reference", torch.float64), strict=True)
        return max(relative_error(got, want) for got, want in pairs)

    def rivals(self) -> Calls:
        """torch's own way to the same end."""
        if self.op != "kron_step_":
            return {}
        products = bmm_products(self.arguments)

        def run(allowed: bool) -> None:
            with tf32(allowed):
                products()

        return {"torch.bmm fp32": lambda: run(False), "torch.bmm tf32": lambda: run(True)}


def rule(recipe: Recipe) -> Rule:
    return Rule(recipe.scale, recipe.refine, recipe.precision, grad=recipe.torch_dtype.itemsize)


def groups_of(shape: tuple[int, int], blocks: list[tuple[int, int]]) -> list[Group]:
    """Of parameters of about `shape`, each cut into blocks of one shape; by the package's own plan."""
    groups: list[Group] = []
    for m, n in blocks:
        config = make_config(block_size=max(m, n), merge_dims=False)
        height, width = max(shape[0] // m, 1) * m, max(shape[1] // n, 1) * n
        # A rectangular block is not what the plan cuts: such a group holds one parameter a block.
        square = m == n
        shapes = [(height, width)] if square else [(m, n)] * (height * width // (m * n))
        groups += group_blocks([plan_parameter(each, config) for each in shapes])
    return groups


def kron_case(
    shape: tuple[int, int], blocks: list[tuple[int, int]], recipe: Recipe, device: torch.device
) -> Case:
    arguments = kron_arguments(Source(device), shape, blocks, recipe)
    costs = kron_step_costs(groups_of(shape, blocks), rule(recipe))
    name = "x".join(map(str, blocks[0])) if len(blocks) == 1 else "ragged"
    bound = ERROR_BOUNDS[recipe.precision]
    count = len(arguments["active"])
    return Case("kron_step_", arguments, KRON_WRITES, name, count, recipe, tuple(costs), bound)


def update_case(shape: tuple[int, int], block: tuple[int, int], recipe: Recipe, device: torch.device) -> Case:
    """The left factors alone; no prediction, the roofline is of both sides."""
    arguments = update_arguments(kron_arguments(Source(device), shape, [block], recipe))
    bound, count = ERROR_BOUNDS[recipe.precision], len(arguments["active"])
    name = "x".join(map(str, block))
    return Case("update_factor_", arguments, ("factor", "statistics"), name, count, recipe, (), bound)


def elementwise_cases(shapes: list[tuple[int, ...]], dtype: str, device: torch.device) -> Iterator[Case]:
    recipe, name = Recipe(dtype=dtype), "x".join(map(str, shapes[0]))
    arguments: dict[str, Any] = elementwise_arguments(Source(device), shapes, dtype)
    config, bound = make_config(), 1e-5 if dtype == "float32" else 8e-3
    first = tuple(
        cost for cost in before_blocks(shapes, [], config, recipe.torch_dtype) if "torch" not in cost.kernel
    )
    writes = ("momenta", "second_moments", "graft_norms")
    yield Case("accumulate_", arguments["accumulate_"], writes, name, len(shapes), recipe, first, bound)
    last = tuple(parameter_step_costs(shapes, [], config, recipe.torch_dtype))
    yield Case(
        "parameter_step_", arguments["parameter_step_"], ("params",), name, len(shapes), recipe, last, bound
    )


def recipes(side: int) -> list[Recipe]:
    """The paper's and the default one; other precisions and bf16 gradients where either kernel is typical."""
    chosen = [Recipe("trace", 0), Recipe()]
    if side in (128, 256):
        chosen += [Recipe(precision=precision) for precision in ("tf32x3", "bf16x6", "fp32")]
        chosen += [Recipe(dtype="bfloat16")]
    return chosen


def cases(shape: tuple[int, int], device: torch.device) -> Iterator[Case]:
    """All that is timed, or on a smaller `shape` verified, one at a time: inputs fill much memory."""
    for side in SIDES:
        if side > min(shape):
            continue
        for recipe in recipes(side):
            yield kron_case(shape, [(side, side)], recipe, device)
    for side in (128, 256):
        yield update_case(shape, (side, side), Recipe(), device)
    for dtype in DTYPES:
        yield from elementwise_cases([shape, shape, (shape[0],)], dtype, device)


def smoke_cases(device: torch.device) -> Iterator[Case]:
    """Every kernel on little work and ragged shapes, for compute-sanitizer."""
    for precision in ERROR_BOUNDS:
        yield kron_case((1, 1), RAGGED, Recipe(precision=precision), device)
        yield kron_case((64, 64), [(64, 64), (40, 33)], Recipe("trace", 0, precision), device)
        yield kron_case((192, 192), [(192, 192)], Recipe("schatten4", 0, precision), device)
    # Wider than high without refinement: bounds by traces of squares.
    for scale in ("frobenius", "schatten4", "product"):
        yield kron_case((1, 1), [(40, 192), (90, 300)], Recipe(scale, 0, dtype="bfloat16"), device)
    # The first gradients, and the product alone.
    first = kron_case((1, 1), RAGGED, Recipe(), device)
    for statistics in (*first.arguments["left_statistics"], *first.arguments["right_statistics"]):
        statistics.zero_()
    yield first
    product = kron_case((1, 1), RAGGED, Recipe(), device)
    product.arguments["update"] = False
    yield product
    # In one chunk of columns, and in three.
    yield update_case((128, 128), (128, 128), Recipe(refine=3), device)
    yield update_case((40, 140), (40, 140), Recipe(), device)
    for dtype in DTYPES:
        yield from elementwise_cases([(300, 70), (5000,), (1,)], dtype, device)
