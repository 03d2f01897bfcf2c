"""Checkpoints of every earlier version, from which all later ones resume (tests/golden/README.md)."""

from __future__ import annotations

from typing import Any

import golden_checkpoints
import pytest
import torch
from tolerances import TRAJECTORY
from torch import nn

from kradagrad_ext.checkpoint import FORMAT

CASES = sorted(path.stem for path in golden_checkpoints.FOLDER.glob("*.pt"))


def loaded(case: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(golden_checkpoints.FOLDER / f"{case}.pt", weights_only=True)
    return saved


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes(case: str) -> None:
    """With the checkpoint's options, it ends with the parameters of the version that wrote it."""
    saved = loaded(case)
    params = [nn.Parameter(tensor.clone()) for tensor in saved["parameters"]]
    _, options = golden_checkpoints.RECIPES[case.split("_", 1)[1]]
    optimizer = golden_checkpoints.optimizer_of(params, options)
    optimizer.load_state_dict(saved["optimizer"])
    for gradients in saved["gradients"]:
        golden_checkpoints.step(optimizer, params, gradients)
    for p, wanted in zip(params, saved["after"], strict=True):
        torch.testing.assert_close(
            p.detach().double(), wanted.double(), rtol=TRAJECTORY[p.dtype], atol=TRAJECTORY[p.dtype]
        )


def test_there_is_one_of_every_recipe_of_this_format() -> None:
    assert {f"format{FORMAT}_{name}" for name in golden_checkpoints.RECIPES} <= set(CASES)
