"""The optimizers to compare, each with its tuned learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import SGD, AdamW, Muon, Optimizer

from .errors import UsageError
from .model import GPT

DEFAULT_LR = {"kradagrad": 1e-2, "adamw": 3e-3, "muon": 1e-2, "sgd": 3e-1}
"""Best learning rates of the grids in docs/, for 300 steps with the default model."""

MAX_GRADIENT_NORM = {"adamw": 1.0, "muon": 1.0, "sgd": 1.0}
"""Gradient clipping of the rivals: without it, AdamW stalled for one seed. KrADagrad needs none."""

NAMES = tuple(DEFAULT_LR)
BETAS = (0.9, 0.99)


def build_optimizers(
    name: str,
    model: GPT,
    lr: float,
    of_kradagrad: dict[str, Any],
    process_group: ProcessGroup | None = None,
) -> list[Optimizer]:
    """Return optimizers that together have each parameter of `model` once.

    `of_kradagrad`: options of KrADagrad.  `process_group`: group of replicas, whose ranks then share
    KrADagrad's work. Every optimizer here accepts DTensors. Raise UsageError if kradagrad_ext is missing or
    refuses its options.
    """
    hidden, embeddings, vectors = split_parameters(model)
    rest = embeddings + vectors
    if name == "kradagrad":
        options = of_kradagrad if process_group is None else {**of_kradagrad, "process_group": process_group}
        return [_kradagrad(hidden, embeddings, vectors, lr, options)]
    return build_rivals(name, hidden, rest, lr)


def build_rivals(
    name: str, hidden: list[nn.Parameter], rest: list[nn.Parameter], lr: float
) -> list[Optimizer]:
    """Return the other packages' optimizers; `hidden`: the matrices for Muon."""
    if name == "adamw":
        return [AdamW(hidden + rest, lr=lr, betas=BETAS, weight_decay=0.0)]
    if name == "muon":
        # Muon's updates get AdamW's usual size, so that both optimizers can share one learning rate.
        muon = Muon(hidden, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, AdamW(rest, lr=lr, betas=BETAS, weight_decay=0.0)]
    return [SGD(hidden + rest, lr=lr, momentum=0.9, nesterov=True)]


def split_parameters(model: GPT) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the layers' matrices; the embeddings and the head; norms and biases."""
    ends = [model.token_embedding.weight, model.position_embedding.weight, model.head.weight]
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return matrices, ends, vectors


def _kradagrad(
    hidden: list[nn.Parameter],
    embeddings: list[nn.Parameter],
    vectors: list[nn.Parameter],
    lr: float,
    options: dict[str, Any],
) -> Optimizer:
    try:
        from kradagrad_ext import KrADagrad
        from kradagrad_ext.backends import resolve
    except ImportError as error:
        raise UsageError(
            f"--optimizer kradagrad needs kradagrad_ext (`pip install .` in the repository): {error}"
        ) from error
    groups = [{"params": hidden}, {"params": embeddings, "precondition": False}, {"params": vectors}]
    try:
        # Without this check, a backend that cannot run fails in the first step.
        dtype = torch.promote_types(hidden[0].dtype, torch.float32)
        resolve(options.get("backend", "auto"), hidden[0].device, dtype)
        return KrADagrad(groups, lr=lr, **options)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--optimizer kradagrad: {error}") from error
