"""Checkpoints of every version that has been, which all later ones go on from (tests/golden/README.md)."""

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
    found: dict[str, Any] = torch.load(golden_checkpoints.FOLDER / f"{case}.pt", weights_only=True)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on(case: str) -> None:
    """With the options of the checkpoint, to the parameters that its own version came to."""
    saved = loaded(case)
    params = [nn.Parameter(own.clone()) for own in saved["parameters"]]
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
