"""Param batches: views of blocks, norms by parameter, and the size of the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from blockings import config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kradagrad_ext.backends.scalars import sums_of
from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.param_batch import ParamBatch, as_tensor
from kradagrad_ext.state import BatchState, State

SHAPES = [(20, 12), (7,), (3, 4, 5), (9, 9), (0, 4), (2, 8)]


def make_batch(shapes: Sequence[tuple[int, ...]] = SHAPES, **options: Any) -> ParamBatch:
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    shared = config(block_size=8, **options)
    return ParamBatch(params, shared, [blocking_of(shape, shared) for shape in shapes])


def batch_state(batch: ParamBatch, states: list[State]) -> BatchState:
    return batch.state([states[i][key] for i, key in batch.entries])


@pytest.mark.parametrize("options", [{}, {"precondition_1d": True}, {"max_factor_dim": 10}], ids=str)
def test_views_cover_every_element_once_and_norms_add_up(options: dict[str, object]) -> None:
    batch = make_batch(**options)
    counts = [torch.zeros(shape) for shape in SHAPES]
    values = [torch.randn(shape) for shape in SHAPES]
    block_norms = []
    pairs = zip(*(batch.blocked(tensors).views for tensors in (counts, values)), strict=True)
    for group, (of_counts, of_values) in zip(batch.groups, pairs, strict=True):
        for view in of_counts:
            view.add_(1)
        blocks = torch.cat([v.reshape(-1, *group.block_shape) for v in of_values])
        block_norms.append(blocks.flatten(1).square().sum(1))
    norms = sums_of(torch.cat(block_norms)[batch.block_order], batch.block_offsets).float()
    for blocking, count, value, norm in zip(batch.blockings, counts, values, norms, strict=True):
        assert (count == (1 if blocking.grids else 0)).all()
        assert batch.preconditioned.tolist() == [bool(p.grids) for p in batch.blockings]
        torch.testing.assert_close(norm, value.square().sum() if blocking.grids else torch.zeros(()))


def test_state_has_the_bytes_of_its_shape_groups() -> None:
    batch, states = make_batch(), [{} for _ in SHAPES]
    batch.adopt(states)
    groups = group_by_shape([blocking_of(shape, config(block_size=8)) for shape in SHAPES])
    size = sum(
        t.nbytes for group in batch_state(batch, states).groups for t in [*group.factors, *group.roots]
    )
    assert size == sum(group.state_bytes() for group in groups)


def test_parameter_states_are_views_of_the_batches() -> None:
    batch, states = make_batch(), [{} for _ in SHAPES]
    batch.adopt(states)
    for tensors in states:
        for key, tensor in tensors.items():
            if key.startswith(("factor", "root")):
                tensor.fill_(7)
    for group in batch_state(batch, states).groups:
        for tensor in (*group.factors, *group.roots, *group.root_stats, *group.factor_stats):
            assert (tensor == 7).all()


class Operations(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_learning_rate_of_the_host_goes_to_a_device_as_an_argument_of_a_kernel() -> None:
    """A copy to the device would make the host wait on every step."""
    like, lr = torch.empty(0, device="meta"), torch.tensor([0.25]).double()
    with Operations() as operations:
        rate = as_tensor(lr, like)
    assert (rate.device.type, rate.dtype, rate.shape) == ("meta", torch.float32, ())
    assert "full" in operations.names
    assert not {"_to_copy", "copy_"} & set(operations.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64)], ids=str)
def test_a_learning_rate_has_the_compute_dtype(lr: float | torch.Tensor, dtype: torch.dtype) -> None:
    rate = as_tensor(lr, torch.empty(0, dtype=dtype))
    assert (rate.dtype, rate.shape, float(rate)) == (dtype, (), float(torch.tensor(float(lr), dtype=dtype)))


def test_gradient_norms_see_what_is_not_finite() -> None:
    shapes = [*SHAPES, (256, 200), (200, 256)]  # the last ones by dot products on a CPU
    batch = make_batch(shapes)
    grads = [torch.randn(shape) for shape in shapes]
    grads[0][3, 3], grads[1][2], grads[7][9, 9] = torch.nan, -torch.inf, torch.nan
    norms = batch.gradient_norms(grads, host_looks=True)
    assert norms.isfinite().tolist() == [False, False, True, True, True, True, True, False]
    for i in (2, 6):
        torch.testing.assert_close(norms[i], grads[i].double().norm(), rtol=1e-6, atol=0)
