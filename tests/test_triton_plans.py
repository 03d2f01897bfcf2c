"""Plans of Triton: the specialisation of every launch, the number of launches, and the plans kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from inputs import square_root
from torch import Tensor

pytest.importorskip("triton")

from kradagrad_ext.backends import square_root_triton
from kradagrad_ext.backends.base import BlockGroup, UpdateRule
from kradagrad_ext.triton_kernels import (
    apply_updates,
    gram,
    inverse_root,
    scaled_product,
    side_state,
    square_root_resident,
    update_moments,
)
from kradagrad_ext.triton_kernels.plan import (
    elements,
    groups,
    launch,
    plan_cache,
    square_root_step,
    tuning,
)

KERNELS = [
    update_moments.update_moments,
    apply_updates.apply_updates,
    scaled_product.scaled_product,
    gram.gram,
    inverse_root.inverse_root,
    side_state.square_gradients,
    side_state.track_statistics,
    side_state.finish_sides,
    side_state.finish_norms,
    square_root_resident.square_root_resident,
]


def plan(
    *shapes: tuple[int, int, int],
    refine: int = 2,
    coupled: bool = False,
    architecture: str = "sm_90",
    **options: Any,
) -> launch.Plan:
    rule, block_groups, first = groups.StepRule(refine, coupled, True, "bf16x3", architecture), [], 0
    for count, *shape in shapes:
        block_groups.append(
            square_root_triton._of_kernels(square_root.group(count, (shape[0], shape[1])), first, True)
        )
        first += count
    return square_root_step.plan_groups(block_groups, rule, **options)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_triton_specialises_no_argument_by_value(kernel: Any) -> None:
    """A kernel is compiled for its constants alone, and the tests compile those. An argument of 1, or of a
    multiple of 16, makes no other kernel of it."""
    if not hasattr(kernel, "params"):
        pytest.skip("interpreted kernels are not specialised")
    specialised = [p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize]
    assert not specialised


def gradient(layout: str) -> Tensor:
    """Return a gradient of two blocks [64, 48], or of an odd size."""
    if layout == "odd":
        return torch.randn(2, 64, 47)
    if layout == "moved":  # not on a multiple of 16 bytes
        return torch.randn(2 * 64 * 48 + 1)[1:].view(2, 64, 48)
    if layout == "odd stride":
        return torch.randn(64, 2 * 48 + 1)[:, :96].unflatten(1, (2, 48)).permute(1, 0, 2)
    if layout == "strided":
        return torch.randn(64, 2 * 48 + 4)[:, :96].unflatten(1, (2, 48)).permute(1, 0, 2)
    if layout == "bfloat16, stride of 8 bytes":
        return torch.randn(64, 2 * 48 + 4).bfloat16()[:, :96].unflatten(1, (2, 48)).permute(1, 0, 2)
    if layout == "transposed":
        return torch.randn(2, 48, 64).mT
    if layout == "every second":
        return torch.randn(2, 64, 96)[..., ::2]
    return torch.randn(2, 64, 48).to(torch.bfloat16 if layout == "bfloat16" else torch.float32)


@pytest.mark.parametrize(
    ("layout", "dtype", "order", "vector"),
    [
        ("contiguous", "fp32", "row", True),
        ("bfloat16", "bf16", "row", True),
        ("strided", "fp32", "row", True),
        ("transposed", "fp32", "col", True),
        ("odd", "fp32", "row", False),
        ("moved", "fp32", "row", False),
        ("odd stride", "fp32", "row", False),
        ("bfloat16, stride of 8 bytes", "bf16", "row", False),
        ("every second", "fp32", "any", False),
    ],
)
def test_dispatch_of_a_factors_product(layout: str, dtype: str, order: str, vector: bool) -> None:
    """B = F^T U of the left side reads the gradient in its order; the right side has the other order."""
    grad = gradient(layout)
    group = replace(square_root.group(2, (grad.shape[1], grad.shape[2])), grads=[grad])
    rule = groups.StepRule(2, False, True, "bf16x3", "sm_80")
    launches = square_root_step.plan_groups([square_root_triton._of_kernels(group, 0, True)], rule).launches
    seen = [launch.constants for launch in launches if launch.constants.get("SCALE") == "whitening"]
    other = {"row": "col", "col": "row", "any": "any"}[order]
    assert {constants["B_ORDER"] for constants in seen} == {order, other}
    for constants in seen:
        assert (str(constants["B_TYPE"]), constants["VECTOR"]) == (dtype, vector)


@pytest.mark.parametrize(
    ("case", "flat"),
    [("contiguous", True), ("transposed", True), ("odd", False), ("moved", False), ("mixed", False)],
)
def test_dispatch_of_elements(case: str, flat: bool) -> None:
    """Elements are flat if all tensors have the parameter's order in memory, in vectors of 16 bytes."""
    param = torch.randn(12, 7 if case == "odd" else 8)
    if case == "moved":
        param = torch.randn(97)[1:].view(12, 8)
    if case in ("transposed", "mixed"):
        param = param.mT
    grad = torch.randn(8, 12) if case == "mixed" else param.clone(memory_format=torch.preserve_format)
    (parameter,) = elements.parameters_of("", [param], {"grad": [grad]})
    assert parameter.flat() == flat


def test_too_many_separate_dims_are_refused() -> None:
    """A parameter that no merging of dims makes addressable is named before anything is launched."""
    strided = torch.zeros(3, 3, 3, 3, 3, 6)[:, ::2, ::2, ::2, ::2, ::2]
    message = r"update_moments_: `params\[0\]`.*at most 5 dims.*got 6"
    with pytest.raises(RuntimeError, match=message):
        elements.parameters_of("update_moments_", [strided], {"grad": [strided]})


@pytest.mark.parametrize(
    ("refine", "coupled", "launches"), [(1, False, 11), (2, False, 13), (3, False, 16), (2, True, 14)]
)
def test_launches_do_not_grow_with_the_blocks(refine: int, coupled: bool, launches: int) -> None:
    for count in (2, 5):
        grouped = plan((count, 140, 130), (1, 97, 9), refine=refine, coupled=coupled)
        assert len(grouped.launches) == launches
        mixed = plan((count, 140, 130), (count, 7, 9), refine=refine, coupled=coupled)
        assert len(mixed.launches) == launches + 1


@pytest.mark.parametrize(
    ("shape", "architecture", "resident"),
    [
        ((31, 9), "sm_80", True),
        ((64, 40), "sm_90", True),
        ((64, 40), "sm_80", False),
        ((64, 24), "sm_90", False),
        ((63, 40), "sm_90", False),  # rows that start anywhere
        ((72, 24), "sm_90", False),
    ],
)
def test_small_blocks_are_one_launch(shape: tuple[int, int], architecture: str, resident: bool) -> None:
    for count in (2, 5):
        step_plan = plan((count, *shape), coupled=True, architecture=architecture)
        assert (len(step_plan.launches) == 1) == resident
        assert (step_plan.scratch == 0) == resident


@pytest.mark.parametrize(
    ("shape", "moved", "shape_class"),
    [
        ((256, 256), False, "large"),
        ((255, 255), False, "small"),
        ((257, 256), False, "small"),
        ((256, 256), True, "small"),
    ],
)
def test_large_tiles_are_of_blocks_read_in_vectors(
    shape: tuple[int, int], moved: bool, shape_class: str
) -> None:
    """One unaligned matrix makes tiles small, since the works of a group share the sums over its tiles."""
    group = square_root.group(2, shape)
    if moved:
        group = replace(group, grads=[torch.randn(2 * 256 * 256 + 1)[1:].view(2, 256, 256)])
    block_groups = [square_root_triton._of_kernels(group, 0, True)]
    launches = square_root_step.plan_groups(
        block_groups, groups.StepRule(2, True, True, "bf16x3", "sm_90")
    ).launches
    seen = {launch.config for launch in launches if launch.kernel is scaled_product.scaled_product}
    assert seen == {tuning.config(scaled_product.scaled_product, shape_class, "bf16x3", "sm_90")}


def test_scratch_memory() -> None:
    """D P_r of a coupled step; U and B of both sides; M and two more squares of each."""
    count, m, n = 3, 144, 136
    step_plan = plan((count, m, n), coupled=True)
    expected = 4 * count * (5 * m * n + 3 * (m * m + n * n))
    assert expected <= step_plan.scratch <= 1.01 * expected


def test_slices_bound_the_scratch_memory() -> None:
    shapes = [(6, 140, 130), (3, 200, 40)]
    whole, sliced = plan(*shapes), plan(*shapes, scratch_bytes=1 << 20)
    assert sliced.scratch < 1 << 21 < whole.scratch
    assert len(sliced.launches) > len(whole.launches)


def test_plans_are_kept_and_tables_for_tensors_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(plan_cache, "_PLANS", type(plan_cache._PLANS)())
    monkeypatch.setattr(plan_cache, "MOST_PLANS", 2)

    def planned(tensor: Tensor) -> Tensor:
        def make() -> launch.Plan:
            made.append(spec)
            return launch.Plan(entries=[[spec.data_ptr(), 7]])

        spec = (specs := plan_cache.SymbolicTensors()).of(tensor)
        return plan_cache.plan_of(spec, specs.addresses, torch.device("cpu"), make)[1]

    tensors = [torch.zeros(4) for _ in range(plan_cache.MOST_TABLES + 1)]
    for tensor in tensors:
        assert planned(tensor).tolist() == [[tensor.data_ptr(), 7]]
    assert len(made) == 1, "a tensor at another address needs no other plan"
    assert planned(tensors[-1]) is planned(tensors[-1])
    assert len(*[kept.tables for kept in plan_cache._PLANS.values()]) == plan_cache.MOST_TABLES
    assert planned(tensors[0][1:]).tolist() == [[tensors[0].data_ptr() + 4, 7]]
    assert planned(tensors[0][::2]).tolist() == [[tensors[0].data_ptr(), 7]]
    assert len(made) == 3, "a tensor that moved within 16 bytes, or has another shape, does"
    assert len(plan_cache._PLANS) == 2
    planned(tensors[0])
    assert len(made) == 4


def test_a_table_is_that_of_a_plan_made_for_these_very_tensors() -> None:
    """Every spec gets its address, in views of several dims and of a part of a tensor."""
    tensor_groups = [square_root.group(3, (70, 100), "grid", view_dtype=torch.bfloat16)]
    tensor_groups.append(square_root.group(2, (20, 9), "column"))
    block_groups = [
        square_root_triton._of_kernels(group, first, True)
        for group, first in zip(tensor_groups, (0, 3), strict=True)
    ]
    rule, specs = groups.StepRule(2, True, True, "bf16x3", "sm_90"), plan_cache.SymbolicTensors()
    group_specs = [group.spec(specs) for group in block_groups]
    plan, table = plan_cache.plan_of(
        object(),
        specs.addresses,
        torch.device("cpu"),
        lambda: square_root_step.plan_groups(group_specs, rule),
    )
    expected = square_root_step.plan_groups(block_groups, rule)
    assert table.tolist() == expected.entries
    assert [vars(each) for each in plan.launches] == [vars(each) for each in expected.launches]


def _moved(group: BlockGroup) -> BlockGroup:
    """Return the group with its gradients stored column by column."""
    return replace(group, grads=[group.grads[0].mT.contiguous().mT])


RULE = replace(square_root.RULE, method="products")
CHANGES: dict[str, tuple[UpdateRule, Any, dict[str, bool]]] = {
    "damping": (replace(RULE, damped_updates=0.0), None, {}),
    "refine": (replace(RULE, refine=1), None, {}),
    "coupling": (replace(RULE, coupled=True), None, {}),
    "precision": (replace(RULE, precision="tf32x3"), None, {}),
    "update": (RULE, None, {"update": False}),
    "stride": (RULE, _moved, {}),
    "dtype of roots": (
        RULE, lambda group: replace(group, left=replace(group.left, root=group.left.root.bfloat16())), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_any_argument_that_a_plan_depends_on_makes_another(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    monkeypatch.setattr(plan_cache, "run", lambda key, *_: keys.append(key))
    group, scales, norms = square_root.group(2, (12, 12)), torch.ones(2), torch.zeros(2)
    calls = {"update": True, "precondition": True}
    rule, change, other = CHANGES[what]
    for _ in range(2):
        square_root_triton.kron_step_([group], scales, norms, RULE, **calls)
    changed = change(group) if change else group
    square_root_triton.kron_step_([changed], scales, norms, rule, **(calls | other))
    assert keys[0] == keys[1] != keys[2]
