"""The compiled Triton kernels on the PTX executor, against float64."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import pytest
import test_accumulate
import test_parameter_step
import test_update_factor
import torch
from cuda.test_elementwise_kernels import tensors_of
from marks import slow, slow_after
from test_kron_step import SCALARS, check_gradient_not_finite, compare, inputs, merged, run
from tolerances import assert_as_accurate, precision_atol

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import PRECISIONS

from .compiled import Compiled

ARCHITECTURES = ["sm_80", "sm_90"]
MODULES = {"accumulate_": test_accumulate, "parameter_step_": test_parameter_step}
WRITTEN = {
    "accumulate_": ("momenta", "second_moments", "directions", "graft_norms"),
    "parameter_step_": ("params", "momenta"),
}
RULES: list[dict[str, Any]] = [
    {"factor_scale": "trace"},
    {"factor_scale": "product"},
    {"factor_scale": "schatten4"},
    {"factor_scale": "frobenius", "refine": 2},
    {"factor_scale": "trace_dim", "refine": 3},
]
SHAPES = [(33, 40), (130, 40), (7, 32), (64, 64), (40, 200), (256, 128)]
# What is not slow needs few specialisations of the kernels, which Triton compiles in a second or more each.
SHAPES_AND_RULES = slow_after(
    2, sorted(itertools.product(SHAPES, RULES), key=lambda case: case[1] is not RULES[3])
)


def check(given: Any, backend: Compiled, **options: Any) -> None:
    ours = run(backend, given, **options)
    plain, exact = run(reference, given, **options), run(reference, given, torch.float64, **options)
    atol = precision_atol(options.get("precision", "bf16x3"), options.get("refine", 0))
    compare(ours, plain, exact, atol)
    cases.assert_same_padding(ours.out, given.out)
    for factor in (*ours.left, *ours.right):
        assert torch.equal(factor, factor.mT), "the factor must be symmetric to the bit"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("shape", "options"), SHAPES_AND_RULES, ids=str)
def test_kron_step(shape: tuple[int, int], options: dict[str, Any], arch: str) -> None:
    rows, columns = shape
    dtype = torch.bfloat16 if rows == 64 else torch.float32
    check(inputs(3, rows, columns, dtype, "strided"), Compiled(arch), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("blocks", [0, 1, 1000])
def test_any_number_of_blocks(blocks: int, arch: str) -> None:
    check(inputs(blocks, 6, 5, torch.float32, "strided"), Compiled(arch), **RULES[3])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_groups_of_several_shapes(arch: str) -> None:
    shapes = [(2, 16, 16), (1, 130, 40), (0, 8, 8), (3, 33, 70), (2, 9, 30)]
    check(merged([inputs(*shape, torch.float32) for shape in shapes]), Compiled(arch), **RULES[3])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("factor_scale", slow_after(1, ["frobenius", "trace"]))
@pytest.mark.parametrize(("rows", "columns"), slow_after(1, [(20, 30), (40, 100), (130, 40)]))
def test_damping_follows_the_statistics(rows: int, columns: int, factor_scale: str, arch: str) -> None:
    """The first gradient starts the factors, a zero one does nothing, one that overflows is counted."""
    given = inputs(5, rows, columns, torch.float32)
    given.active[2] = True
    for statistics in (*given.left_statistics, *given.right_statistics):
        statistics[4, 0] = 0.7
    given.grad[0][1] = 0
    given.grad[0][3] *= 1e30
    exact = cases.copied(given, torch.float64)
    exact.grad[0][3] = torch.inf  # where 1e30 squared does not overflow
    options = {"damping": 1e-3, "factor_scale": factor_scale, "refine": 2}
    ours = run(Compiled(arch), given, **options)
    compare(
        ours, run(reference, given, **options), run(reference, exact, **options), precision_atol("bf16x3", 2)
    )
    for statistics in (*ours.left_statistics, *ours.right_statistics):
        assert statistics[:, 1].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [20, 70])
def test_a_bound_that_is_not_finite_leaves_the_factor(side: int, arch: str) -> None:
    given = inputs(2, side, side, torch.float32)
    given.grad[0][1] *= 1e25
    ours = run(Compiled(arch), given, **RULES[3])
    assert torch.equal(ours.left[0][1], given.left[0][1])
    assert not torch.equal(ours.left[0][0], given.left[0][0])
    assert ours.left_statistics[0][:, 1].tolist() == ours.right_statistics[0][:, 1].tolist() == [0, 1]


NOT_FINITE = test_update_factor.NOT_FINITE


@pytest.mark.parametrize(
    ("case", "fault", "arch"),
    slow_after(
        1,
        [
            (NOT_FINITE[0], "overflow", "sm_90"),
            (NOT_FINITE[1], "nan", "sm_80"),
            (NOT_FINITE[3], "nan", "sm_90"),
        ],
    ),
    ids=str,
)
def test_a_mean_that_is_not_finite_leaves_the_block(case: Any, fault: str, arch: str) -> None:
    d, k, options = case
    test_update_factor.check_mean_not_finite(Compiled(arch), d, k, fault, options)


@pytest.mark.parametrize(("rows", "columns", "arch"), slow_after(1, [(20, 24, "sm_90"), (40, 300, "sm_80")]))
def test_a_gradient_that_is_not_finite_leaves_both_factors(rows: int, columns: int, arch: str) -> None:
    check_gradient_not_finite(Compiled(arch), rows, columns, **RULES[3])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_chunk_that_is_not_finite_is_left_out(arch: str) -> None:
    test_update_factor.check_chunk_not_finite(Compiled(arch), 20, precision_atol("bf16x3", 2))


@pytest.mark.parametrize(("d", "arch"), [(7, "sm_80"), (140, "sm_90")])
def test_a_first_factor_that_is_not_finite_is_counted(d: int, arch: str) -> None:
    test_update_factor.check_start_not_finite(Compiled(arch), d, 16)


@pytest.mark.parametrize(
    ("d", "factor_scale", "refine", "arch"),
    slow_after(1, [(70, "trace", 0, "sm_80"), (9, "frobenius", 2, "sm_90"), (70, "frobenius", 2, "sm_80")]),
)
def test_the_square_of_y_does_not_overflow(d: int, factor_scale: str, refine: int, arch: str) -> None:
    options = {"factor_scale": factor_scale, "refine": refine, "precision": "bf16x6"}
    atol = precision_atol("bf16x6", refine)
    test_update_factor.check_square_of_y(Compiled(arch), d, options, atol)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("seed", slow_after(1, [1, 2]))
def test_same_bits_for_any_order_of_blocks_and_warps(seed: int, arch: str) -> None:
    given = merged([inputs(2, 20, 30, torch.float32), inputs(2, 130, 70, torch.float32)])
    one, other = (run(Compiled(arch, order), given, damping=1e-3, **RULES[3]) for order in (0, seed))
    for name in ("left", "right", "left_statistics", "right_statistics", "out"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert torch.equal(a, b), name
    assert torch.equal(one.norms, other.norms)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "transposed"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(
    ("op", "options"),
    [(op, options) for op, module in MODULES.items() for options in module.OPTIONS],
    ids=str,
)
def test_elements(op: str, options: dict[str, Any], dtype: torch.dtype, transposed: bool, arch: str) -> None:
    check_elements(op, Compiled(arch), MODULES[op].inputs(dtype, transposed), **options)


def check_elements(op: str, backend: Compiled, given: Any, **options: Any) -> None:
    module = MODULES[op]
    results = [module.run(backend, given, **options), module.run(reference, given, **options)]
    results.append(module.run(reference, given, torch.float64, **options))
    for name in WRITTEN[op]:
        lists = [tensors_of(result, name) for result in results]
        for i, trio in enumerate(zip(*lists, strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]")
        cases.assert_same_padding(lists[0], tensors_of(given, name)[: len(lists[0])])


@slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("side", [16, 32, 128, 256])
def test_every_row_of_the_table(side: int, precision: str, arch: str) -> None:
    """Of every shape class and precision (the elements' rows are those of the tests above)."""
    options = RULES[3] | {"damping": 1e-3, "precision": precision}
    check(inputs(2, side, side, torch.float32), Compiled(arch), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [20, 70])
def test_product_alone_and_factors_alone(side: int, arch: str) -> None:
    """Together they are the whole call, bit for bit; with roots in bfloat16."""
    given = inputs(3, side, side, torch.float32)
    given.left_root = [root.bfloat16() for root in given.left_root]
    whole = run(Compiled(arch), given, **RULES[3])
    product = run(Compiled(arch), given, update=False)
    assert torch.equal(product.out[0], whole.out[0])
    assert torch.equal(product.norms, whole.norms)
    assert torch.equal(product.left[0], given.left[0])
    given.out = given.direction = given.left_root = given.right_root = []
    factors = run(Compiled(arch), given, **RULES[3])
    for name in ("left", "right", "left_statistics", "right_statistics"):
        assert torch.equal(getattr(factors, name)[0], getattr(whole, name)[0]), name
    assert (factors.norms == 7).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [20, 70])
def test_out_may_be_the_direction(side: int, arch: str) -> None:
    given = inputs(2, side, side, torch.float32)
    apart, aliased = run(Compiled(arch), given), cases.copied(given)
    aliased.out = aliased.direction
    Compiled(arch).kron_step_(*vars(aliased).values(), *SCALARS.values())
    assert torch.equal(aliased.direction[0], apart.out[0])
