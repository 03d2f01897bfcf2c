"""Blocking: merged dims, block grids and shape groups, from shapes alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from blockings import config, divisions, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kradagrad_ext import KrADagrad
from kradagrad_ext.blocking import ShapeGroup, blocking_of, cut, group_by_shape, merge_dims

shapes = st.lists(st.integers(1, 40), max_size=4).map(tuple)


@settings(deadline=None, max_examples=300)
@given(
    shape=shapes,
    block=st.integers(1, 50),
    limit=st.integers(1, 60),
    merge=st.booleans(),
    data=st.data(),
)
def test_blocks_tile_the_parameter_exactly_once(
    shape: tuple[int, ...], block: int, limit: int, merge: bool, data: st.DataObject
) -> None:
    options = config(
        block_size=block,
        max_factor_dim=limit,
        merge_dims=merge,
        precondition_1d=True,
        **data.draw(divisions(shape)),
    )
    blocking = blocking_of(shape, options)
    assert math.prod(blocking.merged_shape) == math.prod(shape)
    if not blocking.grids:
        assert not any(blocking.factored) or math.prod(shape) == 0
        return
    count = np.zeros(blocking.merged_shape, dtype=int)
    for grid in blocking.grids:
        for cell in np.ndindex(*grid.counts):
            corner = [o + c * d for o, c, d in zip(grid.offset, cell, grid.block_shape, strict=True)]
            count[tuple(slice(c, c + d) for c, d in zip(corner, grid.block_shape, strict=True))] += 1
    assert (count == 1).all()
    for grid in blocking.grids:
        assert grid.block_shape[: blocking.batch_dims] == (1,) * blocking.batch_dims
        modes = [*zip(grid.block_shape, blocking.factored, blocking.merged_dims, strict=True)][
            blocking.batch_dims :
        ]
        for dim, (side, factored, dims) in enumerate(modes, blocking.batch_dims):
            parts = parts_of(shape, options) if dims == (options.split_dim,) else [blocking.merged_shape[dim]]
            assert side <= min(block, max(parts)) if factored else side in parts
            assert factored == (max(parts) <= limit)


@settings(deadline=None, max_examples=100)
@given(st.lists(shapes, max_size=6), st.integers(1, 20))
def test_shape_groups_hold_every_block_once_in_order(all_shapes: list[tuple[int, ...]], block: int) -> None:
    blockings = [blocking_of(shape, config(block_size=block, precondition_1d=True)) for shape in all_shapes]
    groups = group_by_shape(blockings)
    assert len({(g.block_shape, g.factored) for g in groups}) == len(groups)
    seen = set()
    for group in groups:
        start = 0
        for member in group.members:
            assert member.grid == blockings[member.parameter].grids[member.grid_index]
            assert member.grid.block_shape == group.block_shape
            assert member.start == start
            start += member.grid.blocks
            seen.add((member.parameter, member.grid_index))
        assert start == group.blocks
    assert seen == {(i, r) for i, blocking in enumerate(blockings) for r in range(len(blocking.grids))}


@pytest.mark.parametrize(
    ("shape", "limit", "least", "default"),
    [
        ((), 8, (), ()),
        ((1, 1), 8, (), ()),
        ((8, 8), 128, (64,), (8, 8)),
        ((64, 3, 3, 3), 256, (192, 9), (192, 9)),
        ((2, 3, 4), 128, (24,), (2, 12)),
        ((1, 5, 1), 8, (5,), (5,)),
        ((300, 2), 256, (300, 2), (300, 2)),
    ],
)
def test_merging(shape: Any, limit: int, least: Any, default: Any) -> None:
    for keep, expected in ((False, least), (True, default)):
        merged = merge_dims(shape, limit, keep_matrices=keep)
        assert tuple(math.prod(shape[dim] for dim in dims) for dims in merged) == expected
        assert [dim for dims in merged for dim in dims] == [d for d, size in enumerate(shape) if size != 1]


def test_cut_puts_the_rest_last() -> None:
    assert cut(600, 256) == (256, 256, 88)
    assert cut(512, 256) == (256, 256)
    assert cut(5, 256) == (5,)


def grids_of(shape: tuple[int, ...], **options: Any) -> list[tuple[Any, ...]]:
    grids = blocking_of(shape, config(**options)).grids
    return [(grid.offset, grid.counts, grid.block_shape) for grid in grids]


def test_no_block_reaches_from_one_part_into_the_next() -> None:
    assert grids_of((12, 5), block_size=5, split=(6, 3, 3)) == [
        ((0, 0), (1, 1), (5, 5)),
        ((5, 0), (1, 1), (1, 5)),
        ((6, 0), (2, 1), (3, 5)),
    ]
    assert grids_of((12, 5), block_size=5, split=3) == [((0, 0), (3, 1), (4, 5))]
    assert grids_of((5, 12), block_size=5, split=3, split_dim=-1) == [((0, 0), (1, 3), (5, 4))]


def test_a_part_decides_whether_a_dim_has_a_factor() -> None:
    assert blocking_of((12, 5), config(max_factor_dim=4)).factored == (False, False)
    assert blocking_of((12, 5), config(max_factor_dim=5, split=3)).factored == (True, True)
    unfactored = blocking_of((12, 4), config(max_factor_dim=4, split=(5, 7)))
    assert [grid.block_shape for grid in unfactored.grids] == [(5, 4), (7, 4)]


def test_batch_dims_count_matrices() -> None:
    """The blocks of all experts are in one shape group, and are of order 2."""
    blocking = blocking_of((3, 10, 4), config(block_size=8, batch_dims=1, split=2, split_dim=1))
    assert blocking.merged_dims == ((0,), (1,), (2,))
    (group,) = group_by_shape([blocking])
    assert (group.block_shape, group.factored, group.blocks) == ((5, 4), (True, True), 6)
    vectors = blocking_of((3, 10), config(batch_dims=1))
    assert vectors.grids == ()
    assert blocking_of((3, 2, 5, 4), config(batch_dims=2)).merged_shape == (3, 2, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 3}, r"`split` must add up to dim 0 of a \[10, 4\] parameter, got 3"),
        ({"split": (5, 4)}, r"`split` must add up to dim 0 of a \[10, 4\] parameter, got \(5, 4\)"),
        ({"split": 2, "split_dim": 2}, r"`split_dim` must be a dim of a \[10, 4\] parameter .*, got 2"),
        ({"split": 2, "batch_dims": 1}, r"after its 1 batch dims, got 0"),
        ({"batch_dims": 3}, r"`batch_dims` must be dims of a \[10, 4\] parameter, got 3"),
    ],
)
def test_options_that_do_not_fit_a_shape_are_refused_before_anything_changes(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        blocking_of((10, 4), config(**options))
    optimizer = KrADagrad([torch.nn.Parameter(torch.zeros(4, 4))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(10, 4))], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0, 3), (5,)])
def test_parameters_left_to_the_grafting_method(shape: tuple[int, ...]) -> None:
    assert blocking_of(shape, config()).grids == ()
    assert blocking_of((4, 4), config(precondition=False)).grids == ()


def test_a_dim_beyond_max_factor_dim_has_no_factor_and_is_not_cut() -> None:
    blocking = blocking_of((1000, 30), config(block_size=16, max_factor_dim=500))
    assert blocking.factored == (False, True)
    assert {grid.block_shape for grid in blocking.grids} == {(1000, 16), (1000, 14)}


def test_costs() -> None:
    blockings = [blocking_of((512, 256), config()), blocking_of((256, 256), config())]
    (group,) = group_by_shape(blockings)
    assert isinstance(group, ShapeGroup)
    assert group.blocks == 3
    assert group.factor_elements == 3 * 2 * 256 * 256
    assert group.state_bytes(root_size=2) == 3 * 2 * 256 * 256 * (4 + 2)
    assert group.update_flops(refine=1) == 3 * 5 * 256 * 256 * (256 + 256)
    assert group.update_flops(refine=3) == 3 * 11 * 256 * 256 * (256 + 256)
    assert group.product_flops == 3 * 2 * 256 * 256 * (256 + 256)


@pytest.mark.parametrize(
    ("options", "orders"),
    [
        ({}, {1: 2, 2: 2, 3: 3}),
        ({"exponent": 0.25}, {1: 4, 2: 4}),
    ],
)
def test_root_orders(options: dict[str, Any], orders: dict[int, int]) -> None:
    assert {order: config(**options).root_order(order) for order in orders} == orders


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("betas", (1.0, 0.9), "two numbers in [0, 1)"),
        ("betas", 0.9, "two numbers in [0, 1)"),
        ("eps", -1.0, "a number >= 0"),
        ("weight_decay", float("nan"), "a number >= 0"),
        ("block_size", 0, "an integer >= 1"),
        ("block_size", 2.5, "an integer >= 1"),
        ("refine", 0, "an integer from 1 to 6"),
        ("refine", 7, "an integer from 1 to 6"),
        ("root_steps", 4, "None or one of (5, 6, 7, 8)"),
        ("root_steps", 9, "None or one of (5, 6, 7, 8)"),
        ("root_steps", 6.0, "None or one of (5, 6, 7, 8)"),
        ("coupling", "svd", "one of ('none', 'kl')"),
        ("factor_update", "krad", "one of ('auto', 'cholesky', 'products')"),
        ("factor_dtype", torch.float16, "one of"),
        ("batch_dims", -1, "an integer >= 0"),
        ("split", 0, "a number of parts >= 1 or the length of every part"),
        ("split", (), "a number of parts >= 1 or the length of every part"),
        ("split", (3, True), "a number of parts >= 1 or the length of every part"),
        ("split_dim", 0.5, "an integer"),
        ("precision", "fp16", "one of ('bf16x3', 'tf32x3', 'fp32')"),
        ("factor_decay", 0.0, "a number in (0, 1]"),
        ("damping", 0.0, "> 0"),
        ("exponent", 0.3, "1/p with an integer p"),
        ("exponent", "shampoo", "1/p with an integer p"),
        ("graft", "lion", "one of"),
        ("root_dtype", "bf16", "one of"),
        ("root_dtype", torch.float64, "one of"),
        ("nesterov", 1, "a bool"),
    ],
)
def test_bad_options_are_named(option: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"KrADagrad: `{option}` must be") as caught:
        config(**{option: value})
    assert expected in str(caught.value)
    assert f"got {value!r}" in str(caught.value)
