"""Steps in the surroundings that trainers provide: torch's modes, threads and forks."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import profile

from kradagrad_ext import KrADagrad

SHAPES = [(40, 24), (3, 12, 8), (300, 200), (50,), ()]
RECIPES: list[dict[str, Any]] = [
    {},
    {"root_method": "polar", "factor_update": "products", "graft": "whitened"},
    {"packed": True, "root_dtype": torch.bfloat16, "nesterov": False},
    {"momentum_on": "update", "capturable": True, "graft": "rms", "exponent": 0.5},
]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in SHAPES]
    return [nn.Parameter(value.to(dtype)) for value in values]


def set_gradients(params: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu").to(p.dtype)


def steps(optimizer: KrADagrad, params: list[nn.Parameter], numbers: range) -> None:
    for number in numbers:
        set_gradients(params, number)
        optimizer.step()


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "enabled gradients": torch.enable_grad,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "anomaly detection": torch.autograd.detect_anomaly,
    "profiler": lambda: profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_same_bits_within(recipe: dict[str, Any], dtype: torch.dtype, around: str) -> None:
    """Steps within a mode, from the first one, and the steps after it give the bits of plain steps."""
    plain, within = parameters(dtype), parameters(dtype)
    ours, other = (KrADagrad(params, lr=1e-2, block_size=16, **recipe) for params in (plain, within))
    steps(ours, plain, range(3))
    for number in range(3):
        set_gradients(within, number)
        with SURROUNDINGS[around]():
            other.step()
    for optimizer, params in ((ours, plain), (other, within)):
        steps(optimizer, params, range(3, 5))
    assert all(map(torch.equal, plain, within))
    for p, q in zip(plain, within, strict=True):
        for key, value in ours.state[p].items():
            assert torch.equal(value, other.state[q][key]), key
            assert other.state[q][key].dtype == value.dtype


@pytest.mark.parametrize("around", ["inference mode", "default dtype", "default device"])
def test_saved_and_loaded_within(around: str) -> None:
    params, copies = parameters(), parameters()
    ours, other = (KrADagrad(tensors, lr=1e-2, block_size=16) for tensors in (params, copies))
    steps(ours, params, range(3))
    steps(other, copies, range(3))
    with SURROUNDINGS[around]():
        other.load_state_dict(ours.state_dict())
    for optimizer, tensors in ((ours, params), (other, copies)):
        steps(optimizer, tensors, range(3, 5))
    assert all(map(torch.equal, params, copies))


def test_two_optimizers_in_two_threads() -> None:
    """Each thread's optimizer takes the steps that it takes alone."""
    alone, together = ([parameters() for _ in range(2)] for _ in range(2))
    for params in alone:
        steps(KrADagrad(params, lr=1e-2, block_size=16), params, range(12))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda ps: steps(KrADagrad(ps, lr=1e-2, block_size=16), ps, range(12)), together))
    for a, b in zip(alone, together, strict=True):
        assert all(map(torch.equal, a, b))


def step_in_a_child(optimizer: KrADagrad, params: list[nn.Parameter], queue: Any) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    steps(optimizer, params, range(3, 5))
    queue.put([p.detach().tolist() for p in params])


def test_fork_after_use_and_step_in_the_child() -> None:
    params, plain = parameters(), parameters()
    optimizer, other = (KrADagrad(tensors, lr=1e-2, block_size=16) for tensors in (params, plain))
    steps(optimizer, params, range(3))
    steps(other, plain, range(5))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=step_in_a_child, args=(optimizer, params, queue))
    child.start()
    values = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert values == [p.detach().tolist() for p in plain]


def test_consecutive_optimizers_leave_nothing() -> None:
    """The package keeps no references to parameters or to optimizers."""
    references = []
    for _ in range(3):
        params = parameters()
        optimizer = KrADagrad(params, lr=1e-2, block_size=16)
        steps(optimizer, params, range(2))
        references += [weakref.ref(optimizer), *map(weakref.ref, params)]
        del params, optimizer
    gc.collect()
    assert not any(ref() for ref in references)
