"""Norms of gradients: the same bits whichever way they are made, and what is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kradagrad_ext.norms import LARGE, SMALL, GradientNorms

SHAPES = (
    [(3, 4)] * 6 + [(), (0, 3), (50, 90), (9,)] + [()] * 5 + [(SMALL,)] * 40 + [(3, 4), (2, 6), (33, 5)] * 4
)


def one_by_one(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(grad, dtype=dtype) for grad in grads]).square()


def random_gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.float64),
    ],
)
def test_bits_are_those_of_single_norms(given: torch.dtype, dtype: torch.dtype, threads: int) -> None:
    """Of gradients that lie alone, at any place in one tensor, and in another order than their dims."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    grads = random_gradients(given)
    norms = GradientNorms(grads, dtype, dots=False)
    flat = torch.cat([torch.zeros(1, dtype=given), *(grad.reshape(-1) for grad in grads)])
    parts = flat[1:].split([grad.numel() for grad in grads])
    within = [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
    transposed = [grad.mT.contiguous().mT if grad.ndim > 1 else grad for grad in grads]
    for own in (grads, within, transposed):
        assert torch.equal(norms.of(own), one_by_one(own, dtype))
    torch.set_num_threads(before)


def test_gradients_of_another_dtype_than_their_parameters() -> None:
    params = random_gradients(torch.float32)
    grads = [grad.double() if i % 3 else grad.bfloat16() for i, grad in enumerate(params)]
    norms = GradientNorms(params, torch.float64, dots=False).of(grads)
    assert torch.equal(norms, one_by_one(grads, torch.float64))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 12, 40, len(SHAPES)])
def test_what_is_not_finite_shows_in_its_own_norm_alone(which: int, bad: float) -> None:
    grads = [*random_gradients(torch.float32), torch.randn(2, LARGE)]
    grads[which].view(-1)[-1] = bad
    found = GradientNorms(grads, torch.float32, dots=True).of(grads)
    assert (~found.isfinite()).nonzero().flatten().tolist() == [which]


def test_large_gradients_are_dot_products_where_that_is_allowed() -> None:
    grads = [torch.randn(2, LARGE), torch.randn(3)]
    found = GradientNorms(grads, torch.float32, dots=True).of(grads)
    flat = grads[0].reshape(-1)
    assert torch.equal(found[0], torch.dot(flat, flat))
    torch.testing.assert_close(found, one_by_one(grads, torch.float32))
