"""Norms of gradients: the same bits whichever way they are computed, and gradients that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kradagrad_ext.norms import LARGE, SMALL, GradientNorms

SHAPES = (
    [(3, 4)] * 6 + [(), (0, 3), (50, 90), (9,)] + [()] * 5 + [(SMALL,)] * 40 + [(3, 4), (2, 6), (33, 5)] * 4
)


def one_by_one(grads: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads])


def random_gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_single_norms(dtype: torch.dtype, threads: int) -> None:
    """Gradients are separate tensors, parts of one tensor at any offset, or in another order of dims."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    grads = random_gradients(dtype)
    norms = GradientNorms(grads, dots=False)
    flat = torch.cat([torch.zeros(1, dtype=dtype), *(grad.reshape(-1) for grad in grads)])
    parts = flat[1:].split([grad.numel() for grad in grads])
    within = [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
    transposed = [grad.mT.contiguous().mT if grad.ndim > 1 else grad for grad in grads]
    for tensors in (grads, within, transposed):
        for host_looks in (True, False):
            assert torch.equal(norms.of(tensors, host_looks), one_by_one(tensors))
    torch.set_num_threads(before)


def test_gradients_of_another_dtype_than_their_parameters() -> None:
    params = random_gradients(torch.float32)
    grads = [grad.double() if i % 3 else grad.bfloat16() for i, grad in enumerate(params)]
    norms = GradientNorms(params, dots=False).of(grads, host_looks=True)
    assert torch.equal(norms, one_by_one(grads))


@pytest.mark.parametrize("host_looks", [True, False])
@pytest.mark.parametrize(
    ("dtype", "constants"),
    [
        (torch.float32, (1e-38, 1e-30, 1e-12, 1e-7, 1e16, 1e30, 3e37)),
        (torch.bfloat16, (1e-38, 1e-30, 1e30, 3e37)),
        (torch.float64, (1e-300, 1e-150, 1e150, 1e300)),
    ],
)
def test_squares_neither_overflow_nor_underflow(
    dtype: torch.dtype, constants: tuple[float, ...], host_looks: bool
) -> None:
    shapes = [*SHAPES, (2, LARGE)]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for constant in constants:
        grads = [(value * constant).to(dtype) for value in values]
        norms = GradientNorms(grads).of(grads, host_looks)
        expected = one_by_one([grad.double() / constant for grad in grads]) * constant
        torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0)


def test_zeros_have_a_norm_of_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        grads = [torch.zeros(shape, dtype=dtype) for shape in [*SHAPES, (2, LARGE)]]
        for host_looks in (True, False):
            assert not GradientNorms(grads).of(grads, host_looks).any()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 12, 40, len(SHAPES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_not_finite_shows_in_its_own_norm_alone(dtype: torch.dtype, which: int, bad: float) -> None:
    grads = [*random_gradients(dtype), torch.randn(2, LARGE).to(dtype)]
    grads[which].view(-1)[-1] = bad
    norms = GradientNorms(grads).of(grads, host_looks=True)
    assert (~norms.isfinite()).nonzero().flatten().tolist() == [which]


def test_large_gradients_are_dot_products_if_allowed() -> None:
    grads = [torch.randn(2, LARGE), torch.randn(3)]
    norms = GradientNorms(grads).of(grads, host_looks=True)
    flat = grads[0].reshape(-1)
    assert norms[0] == torch.dot(flat, flat).double().sqrt()
    torch.testing.assert_close(norms, one_by_one(grads), rtol=1e-6, atol=0)
