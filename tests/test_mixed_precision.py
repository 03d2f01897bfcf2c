"""Loss scaling, bfloat16 parameters, and accumulated gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tolerances import TRAJECTORY
from training import SMALL, parameters, relative_difference, set_gradients, train

from kradagrad_ext import KrADagrad

SHAPES = ((20, 12), (7,), (8, 8), ())


def scaled_step(optimizer: KrADagrad, scaler: torch.amp.GradScaler, *, unscale_first: bool = False) -> None:
    """Step through the scaler, with the gradients of a scaled loss."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad *= scaler.scale(torch.ones(()))
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("amp_scaling", [False, True])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_scaled_loss_gives_the_same_steps_to_the_bit(
    unscale_first: bool, amp_scaling: bool, backend: str
) -> None:
    """Scales are powers of two and grow every second step. A user who clips gradients unscales them first."""
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = KrADagrad(ours, **SMALL, backend=backend, amp_scaling=amp_scaling)
    other = KrADagrad(plain, **SMALL, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(6):
        set_gradients(ours, step)
        scaled_step(optimizer, scaler, unscale_first=unscale_first)
    assert scaler.get_scale() == 2.0**13
    train(other, plain, range(6))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert not hasattr(optimizer, "found_inf"), "a later step without the scaler must not see it"


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_step_that_the_scaler_refuses_changes_nothing(amp_scaling: bool, backend: str) -> None:
    """All parameters stay, even those with finite gradients, since the loss overflowed. The scale halves."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, backend=backend, amp_scaling=amp_scaling)
    train(optimizer, params, range(3))
    before = [p.detach().clone() for p in params]
    state = {(p, key): t.clone() for p in params for key, t in optimizer.state[p].items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    set_gradients(params, 3)
    assert params[0].grad is not None
    params[0].grad[2, 3] = torch.inf
    scaled_step(optimizer, scaler)
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert all(torch.equal(t, optimizer.state[p][key]) for (p, key), t in state.items())
    set_gradients(params, 3)
    scaled_step(optimizer, scaler)
    assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_scale_that_is_still_being_found_keeps_no_root_at_the_identity() -> None:
    """If the first gradients are refused, the next ones get roots, however rarely roots are due."""
    params = parameters((20, 12))
    optimizer = KrADagrad(params, block_size=8, root_every=100, amp_scaling=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        set_gradients(params, step)
        if step < 2:
            assert params[0].grad is not None
            params[0].grad[0, 0] = torch.inf
        scaled_step(optimizer, scaler)
    root = optimizer.state[params[0]]["root_0_0"]
    assert not torch.equal(root, torch.eye(8).expand_as(root))


def scaled_rank(rank: int, mode: str) -> dict[str, Any]:
    """Step after the scaler of rank 1 alone has found an Inf, and again after none has.

    Replicas can disagree as well, if one batch overflows before gradients are summed.
    """
    model = ranks.make_model(torch.float32)
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **ranks.shard(model, mode))
    before = ranks.whole(model)
    optimizer.found_inf = torch.tensor(float(rank == 1))
    optimizer.grad_scale = torch.tensor(4.0)
    ranks.backward(model, 0)
    optimizer.step()
    refused = ranks.whole(model)
    optimizer.found_inf = torch.zeros(1)
    ranks.backward(model, 0)
    for p in model.parameters():
        p.grad *= 4
    optimizer.step()
    return {"before": before, "refused": refused, "after": ranks.whole(model)}


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_what_one_rank_refuses_all_refuse(mode: str, tmp_path: Path) -> None:
    model = ranks.make_model(torch.float32)
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS)
    ranks.backward(model, 0)
    optimizer.step()
    for result in ranks.launch(2, scaled_rank, tmp_path, mode):
        assert all(torch.equal(a, b) for a, b in zip(result["before"], result["refused"], strict=True))
        for ours, alone in zip(result["after"], ranks.whole(model), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulated_gradients_are_one_gradient(dtype: torch.dtype, backend: str) -> None:
    """Backward adds to gradients until a step; `zero_grad` may set them to zero instead of None."""
    ours, whole = parameters((20, 12), dtype=dtype), parameters((20, 12), dtype=dtype)
    optimizer = KrADagrad(ours, **SMALL, backend=backend)
    other = KrADagrad(whole, **SMALL, backend=backend)
    for step in range(5):
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step)).to(dtype)
        for half in (x[:4], x[4:]):
            (half @ ours[0]).square().sum().backward()
        (x[:4] @ whole[0]).square().sum().backward()
        (x[4:] @ whole[0]).square().sum().backward()
        optimizer.step()
        other.step()
        optimizer.zero_grad(set_to_none=False)
        other.zero_grad()
    assert torch.equal(ours[0], whole[0])


@pytest.mark.parametrize("root_dtype", [None, torch.bfloat16])
def test_bfloat16_parameters_keep_factors_in_float32(root_dtype: torch.dtype | None, backend: str) -> None:
    """Steps are those of float32 parameters with the same gradients, to the precision of the weights."""
    ours, exact = parameters(*SHAPES, dtype=torch.bfloat16), parameters(*SHAPES)
    for a, b in zip(ours, exact, strict=True):
        b.data.copy_(a.data)
    optimizer = KrADagrad(ours, **SMALL, root_dtype=root_dtype, backend=backend)
    other = KrADagrad(exact, **SMALL, root_dtype=root_dtype, backend=backend)
    for step in range(10):
        set_gradients(ours, step)
        for a, b in zip(ours, exact, strict=True):
            assert a.grad is not None
            b.grad = a.grad.float()
        optimizer.step()
        other.step()
    state = optimizer.state[ours[0]]
    assert state["factor_0_0"].dtype == torch.float32
    assert state["root_0_0"].dtype == (root_dtype or torch.float32)
    assert torch.equal(state["factor_0_0"], other.state[exact[0]]["factor_0_0"])
    assert relative_difference(ours, exact) < TRAJECTORY[torch.bfloat16]
