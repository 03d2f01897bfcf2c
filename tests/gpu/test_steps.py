"""The optimizer on a GPU: trajectories, CUDA graphs, side streams, TF32, waits, several devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import TRAJECTORY
from torch import Tensor
from training import SMALL

from kradagrad_ext import KrADagrad

from . import CUDA, equal, judge

SHAPES = ((140, 60), (64, 64), (33, 20), (7,))
STEPS, WARMUP = 24, 3
OPTIONS: dict[str, Any] = SMALL | {"block_size": 144, "factor_update": "products", "root_method": "polar"}
RECIPES: list[dict[str, Any]] = [
    {},
    {"refine": 3, "coupling": "kl", "graft": "rms", "nesterov": True},
    {"packed": True},
    {"root_dtype": torch.bfloat16, "weight_decay": 0.1},
]


class Run:
    """Parameters and an optimizer; the gradients depend on the step alone."""

    def __init__(
        self, backend: str, dtype: torch.dtype = torch.float32, device: torch.device = CUDA, **options: Any
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        made = [torch.randn(shape, generator=generator) for shape in SHAPES]
        self.params = [torch.nn.Parameter(p.to(device, dtype)) for p in made]
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.optimizer = KrADagrad(self.params, **(OPTIONS | options), backend=backend)
        steps = torch.Generator().manual_seed(2)
        self.gradients = [
            [torch.randn(shape, generator=steps).to(device, dtype) for shape in SHAPES] for _ in range(STEPS)
        ]

    def load(self, step: int) -> None:
        for p, gradient in zip(self.params, self.gradients[step], strict=True):
            assert p.grad is not None
            p.grad.copy_(gradient)

    def take(self, steps: range = range(STEPS), act: Callable[[], object] | None = None) -> list[Tensor]:
        for step in steps:
            self.load(step)
            (act or self.optimizer.step)()
        return [p.detach() for p in self.params]


def close(ours: list[Tensor], exact: list[Tensor]) -> None:
    for p, q in zip(ours, exact, strict=True):
        assert (p.double() - q.double()).norm() <= TRAJECTORY[p.dtype] * q.double().norm()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trajectory(dtype: torch.dtype, recipe: dict[str, Any], gpu_backend: str) -> None:
    rate = {torch.float32: 1e-2, torch.bfloat16: 5e-4}[dtype]  # so that rounding of bfloat16 does not grow
    exact = Run("reference", torch.float64, lr=rate, **recipe).take()
    judge(close, Run(gpu_backend, dtype, lr=rate, **recipe).take(), exact)


def test_auto_takes_a_step() -> None:
    judge(close, Run("auto").take(), Run("reference", torch.float64).take())


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_replays_of_a_graph_are_steps(recipe: dict[str, Any], gpu_backend: str) -> None:
    ours, eager = (Run(gpu_backend, capturable=True, **recipe) for _ in range(2))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours.take(range(WARMUP))
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        ours.optimizer.step()
    judge(equal, ours.take(range(WARMUP, STEPS), graph.replay), eager.take())


def test_a_side_stream_makes_no_difference(gpu_backend: str) -> None:
    plain = Run(gpu_backend).take()
    ours, stream = Run(gpu_backend), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        params = ours.take()
    torch.cuda.current_stream().wait_stream(stream)
    judge(equal, params, plain)


def test_tf32_of_torch_makes_no_difference_that_counts(gpu_backend: str) -> None:
    exact, before = Run("reference", torch.float64).take(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ours = Run(gpu_backend).take()
    finally:
        torch.set_float32_matmul_precision(before)
    judge(close, ours, exact)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("capturable", [False, True])
def test_steps_do_not_wait(capturable: bool, gpu_backend: str) -> None:
    run = Run(gpu_backend, capturable=capturable)
    run.take(range(WARMUP))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.take(range(WARMUP, STEPS))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_device_takes_the_same_steps(gpu_backend: str) -> None:
    """Step on each device, the current one and others."""
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("there is one device")
    runs = [Run(gpu_backend, device=torch.device("cuda", index)) for index in range(count)]
    results = [[p.cpu() for p in run.take()] for run in runs]
    for other in results[1:]:
        judge(equal, other, results[0])


def test_parameters_of_one_optimizer_may_be_on_several_devices(gpu_backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device")
    params = [torch.nn.Parameter(torch.ones(64, 64, device=torch.device("cuda", i))) for i in range(2)]
    optimizer = KrADagrad(params, **OPTIONS, backend=gpu_backend)
    for _ in range(6):
        for p in params:
            p.grad = torch.linspace(-1, 1, p.numel(), device=p.device).view_as(p)
        optimizer.step()
    judge(equal, [params[0].detach().cpu()], [params[1].detach().cpu()])
