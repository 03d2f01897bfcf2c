"""Whole optimizer steps on a GPU: KrADagrad by backend and block size, and AdamW fused, in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Row, percentiles
from gpu_timing import Calls, milliseconds

from kradagrad_ext import KrADagrad
from kradagrad_ext.cost.gpus import Gpu, predict
from kradagrad_ext.cost.models import MODELS
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.steps import kernel_costs, parts_of
from kradagrad_ext.cost.torch_products import root_cost
from kradagrad_ext.plan import group_blocks, plan_parameter

BLOCKS = (128, 256)
ROUNDS, WARMUP = 20, 12
SECONDS = 30.0
SHAPES = MODELS["gpt2"].shapes
"""All layers of GPT-2, biases and norms included, without its embeddings."""


def parameters(device: torch.device) -> list[torch.nn.Parameter]:
    generator = torch.Generator(device).manual_seed(0)
    made = []
    for shape in SHAPES:
        param = torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator, device=device))
        param.grad = 1e-3 * torch.randn(shape, generator=generator, device=device)
        made.append(param)
    return made


def step_rows(device: torch.device, gpu: Gpu | None, ours: Sequence[str]) -> list[Row]:
    """Milliseconds of a step: the median is of one without roots, the mean has two refreshes in 20 steps."""
    calls: Calls = {"AdamW fused": torch.optim.AdamW(parameters(device), lr=1e-4, fused=True).step}
    for block in BLOCKS:
        for backend in ours:
            optimizer = KrADagrad(parameters(device), lr=1e-4, block_size=block, backend=backend)
            calls[f"KrADagrad block={block} {backend}"] = optimizer.step
    rows = []
    for name, times in milliseconds(calls, ROUNDS, WARMUP, SECONDS).items():
        rows.append(step_row(name, "ms", percentiles(times)))
        rows.append(step_row(name, "mean_ms", (sum(times) / len(times),) * 3))
    return rows + (predicted_rows(gpu) if gpu else [])


def predicted_rows(gpu: Gpu) -> list[Row]:
    rows = []
    for block in BLOCKS:
        config = make_config(block_size=block)
        groups = group_blocks([plan_parameter(shape, config) for shape in SHAPES])
        kernels = predict(kernel_costs(parts_of(SHAPES, config)), gpu)
        with_roots = kernels + predict([root_cost(groups, config)], gpu)
        name = f"KrADagrad block={block} roofline"
        rows += [step_row(name, "ms", (kernels,) * 3), step_row(name, "mean_ms", (with_roots,) * 3)]
    return rows


def step_row(name: str, metric: str, spread: tuple[float, float, float]) -> Row:
    op, _, backend = name.rpartition(" ")
    return Row(f"step {op}", backend, "float32", "gpt2", len(SHAPES), metric, *spread)
