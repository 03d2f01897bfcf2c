"""The published optimizers, against trajectories of the authors' code (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kradagrad_ext import PublishedKrADagrad

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz") if not path.stem.startswith("shampoo"))
TOLERANCE = {"star": 1e-10, "plain": 1e-6}
"""Tolerances by variant: the authors' plain variant casts the gradient to float32."""


def published(case: dict[str, Any], parameter: torch.nn.Parameter) -> PublishedKrADagrad:
    return PublishedKrADagrad(
        [parameter],
        variant=case["algorithm"],
        lr=case["lr"],
        momentum=case["momentum"],
        matrix_eps=case["matrix_eps"],
        beta2=case["beta2"],
        block_size=case["block_size"],
        root_every=case["root_every"],
        factor_every=case["factor_every"],
        start_step=case["start_preconditioning_step"],
        weight_decay=case["weight_decay"],
        ons_exponent=bool(case["inverse_exponent_override"]),
    )


@pytest.mark.filterwarnings("ignore:PublishedKrADagrad. `block_size` .* into a vector")
@pytest.mark.parametrize("name", CASES)
def test_published_trajectory(name: str) -> None:
    data = np.load(GOLDEN / f"{name}.npz")
    case = json.loads(str(data["config"]))
    tolerance = TOLERANCE[case["algorithm"]]
    parameter = torch.nn.Parameter(torch.from_numpy(data["initial"].copy()))
    optimizer = published(case, parameter)
    for gradient, expected in zip(data["gradients"], data["parameters"], strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient)
    for key in ("factor", "root"):
        ours = [tensor for block in optimizer.state[parameter][f"{key}s"] for tensor in block]
        assert len(ours) == sum(entry.startswith(f"{key}_") for entry in data.files)
        for i, tensor in enumerate(ours):
            expected = data[f"{key}_{i}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=tolerance, atol=tolerance * scale)


def test_all_published_cases_are_covered() -> None:
    assert len(CASES) == 14
