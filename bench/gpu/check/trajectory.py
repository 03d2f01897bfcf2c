"""Thirty optimizer steps by a backend: against float64, captured, on a side stream, without waits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.common import relative_error
from bench.gpu.check.inputs import Source
from bench.gpu.check.products import tf32
from bench.gpu.check.words import Report
from kradagrad_ext import KrADagrad
from kradagrad_ext.diagnostics import read_diagnostics as health

SHAPES = ((300, 140), (256, 256), (128, 64), (40, 30), (50,))
"""Shapes with blocks for every kernel, and a vector."""
STEPS, FEW_STEPS, WARMUP = 30, 12, 3
"""Steps of a run, of a short run, and before a capture; runs go past the second refresh of the roots."""
LR, RANK, SCALE = 1e-3, 8, 1e-3
BOUND, BFLOAT16_BOUND = 1e-3, 3e-2
"""Bounds on the error of each parameter's displacement, relative to the reference in float64."""
OPTIONS: dict[str, Any] = {
    "lr": LR, "block_size": 256, "factor_update": "products", "root_method": "polar",
}  # fmt: skip

Step = Callable[[int], None]


class Run:
    """Parameters that start at zero, with gradients that do not depend on them."""

    def __init__(
        self,
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        steps: int = STEPS,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.seed, self.device, self.steps = seed, device, steps
        self.params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for shape in SHAPES]
        self.optimizer = KrADagrad(self.params, backend=backend, **(OPTIONS | options))
        for param in self.params:
            param.grad = torch.zeros_like(param)

    def load(self, step: int) -> None:
        """Write the step's gradients in place: half low rank, half noise, rounded to bfloat16."""
        for index, param in enumerate(self.params):
            source = Source(self.device, self.seed + 1000 * step + index)
            rows, cols = param.shape if param.ndim == 2 else (1, *param.shape)
            bases = Source(self.device, self.seed + index)
            signal = bases.normal(rows, RANK) @ source.normal(RANK, RANK) @ bases.normal(RANK, cols) / RANK
            value = SCALE * (signal + source.normal(rows, cols)).reshape(param.shape)
            assert param.grad is not None
            param.grad.copy_(value.bfloat16())

    def step(self, number: int) -> None:
        self.load(number)
        self.optimizer.step()

    def displacements(self) -> list[Tensor]:
        return [param.detach().clone() for param in self.params]


def take(run: Run, step: Step | None = None) -> list[Tensor]:
    for number in range(run.steps):
        (step or run.step)(number)
    return run.displacements()


def check(backend: str, mode: str, device: torch.device, seed: int, small: bool, report: Report) -> list[str]:
    """Run one mode of steps and return its defects in words. Errors are reported before they are judged."""
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    options = {"packed": {"packed": True}, "capture": {"capturable": True}}.get(mode, {})
    make = functools.partial(Run, steps=FEW_STEPS if small else STEPS, **options)
    exact = take(make("reference", device, torch.float64, seed))
    plain = take(make("reference", device, dtype, seed))
    wrong, run = [], make(backend, device, dtype, seed)
    try:
        ours = WAYS.get(mode, take)(run)
    finally:
        for name, value in health(run.optimizer)[0].items():
            if name in ("roots_kept", "root_residual", "factor_fallbacks"):
                report.row(name, value)
    bound = BFLOAT16_BOUND if mode == "bfloat16" else BOUND
    for shape, got, torch_only, want in zip(SHAPES, ours, plain, exact, strict=True):
        name = "x".join(map(str, shape))
        error = relative_error(got, want)
        report.row(f"error of {name}", error, bound=bound)
        report.row(f"error of {name}, torch", relative_error(torch_only, want))
        if not error <= bound:
            wrong.append(f"{name}: error {error:.1e}, bound {bound:.0e}")
    if mode in ("capture", "stream"):
        same = take(make(backend, device, dtype, seed))
        if not all(torch.equal(a, b) for a, b in zip(ours, same, strict=True)):
            wrong.append("other bits than from steps on the default stream, one by one")
    return wrong


def _captured(run: Run) -> list[Tensor]:
    """Take the first steps eagerly on a side stream, the others as replays of one graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for number in range(WARMUP):
            run.step(number)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        run.optimizer.step()
    for number in range(WARMUP, run.steps):
        run.load(number)
        graph.replay()
    torch.cuda.synchronize()
    return run.displacements()


def _on_a_stream(run: Run) -> list[Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        displacements = take(run)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return displacements


def _with_tf32(run: Run) -> list[Tensor]:
    """Take steps with TF32 allowed, as some trainers do: roots and factors must not depend on it."""
    with tf32(True):
        return take(run)


@contextlib.contextmanager
def _no_waits() -> Iterator[None]:
    """Raise RuntimeError if the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _without_waits(run: Run) -> list[Tensor]:
    def step(number: int) -> None:
        run.load(number)
        with _no_waits() if number >= WARMUP else contextlib.nullcontext():
            run.optimizer.step()

    return take(run, step)


WAYS: dict[str, Callable[[Run], list[Tensor]]] = {
    "capture": _captured,
    "stream": _on_a_stream,
    "tf32": _with_tf32,
    "sync": _without_waits,
}
