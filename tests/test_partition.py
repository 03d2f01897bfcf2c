"""Ownership of blocks, from shapes alone: pieces make up every parameter, and ranks have equal shares."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from blockings import config, divisions
from hypothesis import given, settings
from hypothesis import strategies as st

from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.cost.models import MODELS
from kradagrad_ext.distributed.partition import Box, assign_pieces, bytes_of, cost_of


@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_a_large_model_is_shared_out_evenly(ranks: int) -> None:
    """The model is GPT-3 XL, whose embeddings have no blocks."""
    model = MODELS["1.3b"]
    configs = [config()] * len(model.shapes) + [config(precondition=False)] * len(model.plain_shapes)
    assigned = assign_pieces([*model.shapes, *model.plain_shapes], configs, ranks)
    for measure in (cost_of, bytes_of):
        shares = [sum(measure(piece.blocking) for piece in pieces) for pieces in assigned]
        assert max(shares) <= 1.1 * sum(shares) / ranks, measure.__name__


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=0, max_size=3), min_size=1, max_size=4),
    block_size=st.sampled_from([4, 7, 16]),
    max_factor_dim=st.sampled_from([8, 1000]),
    merge_dims=st.booleans(),
    ranks=st.integers(1, 9),
    data=st.data(),
)
def test_pieces_make_up_every_parameter(
    shapes: list[list[int]],
    block_size: int,
    max_factor_dim: int,
    merge_dims: bool,
    ranks: int,
    data: st.DataObject,
) -> None:
    """Pieces have every element once, and their blocks are those of the parameter."""
    options = {"block_size": block_size, "max_factor_dim": max_factor_dim, "merge_dims": merge_dims}
    sizes = [tuple(shape) for shape in shapes]
    configs = [config(**options, **data.draw(divisions(shape))) for shape in sizes]
    pieces = list(itertools.chain(*assign_pieces(sizes, configs, ranks)))
    for parameter, (shape, parameter_config) in enumerate(zip(sizes, configs, strict=True)):
        counted = torch.zeros(shape, dtype=torch.int64)
        blocks: Counter[object] = Counter()
        for piece in (piece for piece in pieces if piece.parameter == parameter):
            counted[piece.box.within(Box((0,) * len(shape), shape))] += 1
            assert piece.blocking.shape == piece.box.shape
            blocks.update({group.block_shape: group.blocks for group in group_by_shape([piece.blocking])})
        assert (counted == 1).all()
        expected = group_by_shape([blocking_of(shape, parameter_config)])
        assert blocks == {group.block_shape: group.blocks for group in expected}


def test_boxes_intersect() -> None:
    a, b = Box((0, 2), (4, 4)), Box((3, 0), (4, 3))
    assert a.intersection(b) == b.intersection(a) == Box((3, 2), (1, 1))
    assert a.intersection(Box((4, 0), (1, 9))) is None
    assert Box((), ()).intersection(Box((), ())) == Box((), ())
