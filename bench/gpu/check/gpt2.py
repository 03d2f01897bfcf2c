"""Whole optimizer steps on the layers of GPT-2: by backend, block size, and eager or from a graph."""

from __future__ import annotations

import time

import torch

from bench.common import percentiles
from bench.gpu.check.timing import Call, device_times, event_time, host_time
from bench.gpu.check.words import Report, SkippedError
from bench.roofline.launches import launch_costs
from kradagrad_ext import KrADagrad
from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.cost.models import MODELS
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.time_model import predict
from kradagrad_ext.cost.time_model.gpus import gpu_of
from kradagrad_ext.cost.work import parts_of, root_costs
from kradagrad_ext.schedule import SETTLED

ROUNDS, WARMUP, SECONDS = 40, 12, 4.0
"""Rounds, warm-up steps and most seconds; the rounds include four refreshes of the roots."""
SHAPES = MODELS["gpt2"].shapes
"""All layers of GPT-2, biases and norms included, without its embeddings."""


def parameters(device: torch.device, layers: int | None = None) -> list[torch.nn.Parameter]:
    """Return the model's parameters, or those of its first layers."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in SHAPES[: 12 * layers] if layers else SHAPES:
        param = torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator, device=device))
        param.grad = 1e-3 * torch.randn(shape, generator=generator, device=device)
        params.append(param)
    return params


def measure(name: str, device: torch.device, layers: int | None, report: Report) -> None:
    """Time one way to step, ``adamw`` or ``<block>/<backend>/<eager, graph>``."""
    params = parameters(device, layers)
    report.fields |= {"op": "step", "dtype": "float32", "shape": "gpt2", "blocks": len(params)}
    if name == "adamw":
        report.fields |= {"backend": "AdamW fused"}
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True, capturable=True)
        times = device_times(optimizer.step, ROUNDS, SECONDS)
        report.row("ms", *times.spread, note=times.how)
        return
    block, backend, how = name.split("/")
    report.fields |= {"backend": backend, "recipe": f"block={block} {how}"}
    if backend == "roofline":
        _predict(int(block), device, report)
        return
    optimizer = KrADagrad(params, lr=1e-4, block_size=int(block), backend=backend, capturable=how == "graph")
    optimizer.param_groups[0]["step"] = SETTLED
    (_graph if how == "graph" else _eager)(optimizer.step, report)


def _graph(step: Call, report: Report) -> None:
    """Time replays of one graph; every replay refreshes the roots of the same number of blocks."""
    times = device_times(step, ROUNDS, SECONDS)
    if times.how != "graph":
        raise RuntimeError("the step could not be captured, see the log")
    report.row("ms", *times.spread, note=times.how)


def _eager(step: Call, report: Report) -> None:
    """Time the GPU and the host separately; most steps refresh no roots, the means include refreshes."""
    for _ in range(WARMUP):
        step()
    host = host_time(step)
    times, start = [], time.monotonic()
    for number in range(ROUNDS):
        times.append(event_time(step, 1.5 * host + 0.5))
        if number >= 20 and time.monotonic() - start > SECONDS:
            break
    report.row("ms", *percentiles(times))
    report.row("mean_ms", sum(times) / len(times))
    torch.cuda.synchronize()
    hosts = []
    for _ in range(20):
        begin = time.perf_counter()
        step()
        hosts.append(1e3 * (time.perf_counter() - begin))
        torch.cuda.synchronize()
    report.row("host_ms", *percentiles(hosts))
    report.row("mean_host_ms", sum(hosts) / len(hosts))
    begin = time.perf_counter()
    for _ in range(20):
        step()
    torch.cuda.synchronize()
    report.row("wall_ms", 1e3 * (time.perf_counter() - begin) / 20)


def _predict(block: int, device: torch.device, report: Report) -> None:
    gpu = gpu_of(torch.cuda.get_device_name(device))
    if gpu is None:
        raise SkippedError("this GPU is not in the table of peaks")
    config = make_config(block_size=block)
    groups = group_by_shape([blocking_of(shape, config) for shape in SHAPES])
    kernels = predict(launch_costs(parts_of(SHAPES, config)), gpu)
    report.row("ms", kernels)
    report.row("mean_ms", kernels + predict(root_costs(groups, config), gpu))
