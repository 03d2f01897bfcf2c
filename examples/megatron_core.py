"""KrADagrad in Megatron-Core: what `get_megatron_optimizer` returns, for models of `megatron.core`.

    from megatron_core import kradagrad_optimizer

    optimizer = kradagrad_optimizer(OptimizerConfig(lr=1e-2, weight_decay=0.02, bf16=True), model_chunks)
    scheduler = OptimizerParamScheduler(optimizer, ...)

Megatron-Core shards models itself: each tensor-parallel rank preconditions its part of a matrix, and every
data-parallel rank holds all state. `param_groups` finds the queries, key and value of every query group in
the fused matrix, and gate and up, so that no block mixes them. Every group has a separate KrADagrad, because
Megatron-Core's checkpoints identify the groups of one optimizer by their rates and decay alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer
from torch import nn

from kradagrad_ext import KrADagrad, param_groups


def kradagrad_optimizer(
    config: OptimizerConfig, model_chunks: Sequence[nn.Module], **options: object
) -> ChainedOptimizer:
    """Return Megatron-Core's optimizer around a KrADagrad of all parameters.

    Args:
        config: `lr`, `min_lr`, `weight_decay`, `clip_grad` and `bf16` apply; bf16 keeps float32 parameters.
        model_chunks: the model's pipeline stages on this rank.
        options: of `KrADagrad`.

    Raises:
        ValueError: `config` asks for float16, or for the distributed optimizer, which cuts parameters into
            flat pieces; or there are parameters of expert parallelism.
    """
    for option in ("use_distributed_optimizer", "fp16"):
        if getattr(config, option):
            raise ValueError(f"kradagrad_optimizer: `config.{option}` must be False, got True")
    if any(not getattr(p, "allreduce", True) for chunk in model_chunks for p in chunk.parameters()):
        raise ValueError("kradagrad_optimizer: `model_chunks` must have no expert parallelism, got some")
    optimizers = []
    for group in (group for chunk in model_chunks for group in param_groups(chunk, show=None)):
        inner = KrADagrad(
            [scheduled(group, config)], lr=config.lr, weight_decay=config.weight_decay, **options
        )
        wrapped = (
            Float16OptimizerWithFloat16Params(inner, config, None, no_state)
            if config.bf16
            else FP32Optimizer(inner, config, no_state)
        )
        optimizers.append(wrapped)
    return ChainedOptimizer(optimizers)


def scheduled(group: dict[str, Any], config: OptimizerConfig) -> dict[str, Any]:
    """Return a parameter group with the entries that Megatron-Core's scheduler and checkpoints read."""
    decays = 0.0 if group.get("weight_decay") == 0 else 1.0
    rates = dict(lr_mult=1.0, max_lr=config.lr, min_lr=config.min_lr, is_decoupled_lr=False)
    return {**group, **rates, "wd_mult": decays, "is_expert_parallel": False, "default_config": True}


def no_state(optimizer: torch.optim.Optimizer, config: OptimizerConfig | None = None) -> None:
    """Create no state: KrADagrad creates it when a parameter gets its first gradient."""
