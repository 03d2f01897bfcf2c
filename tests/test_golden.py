"""The published optimizers, held to trajectories of the authors' own code (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kradagrad_ext import KrADagrad

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz") if not path.stem.startswith("shampoo"))
TOLERANCE = {"star": 1e-10, "plain": 1e-6}
"""The authors' plain variant casts the gradient to float32."""


def published(case: dict[str, Any], parameter: torch.nn.Parameter, backend: str) -> KrADagrad:
    return KrADagrad.published(
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
        backend=backend,
    )


def row_major_blocks(optimizer: KrADagrad, parameter: torch.nn.Parameter, key: str) -> list[torch.Tensor]:
    """The state's tensors in the order of the golden files: blocks in row-major order, modes innermost."""
    plan = optimizer._engine._buckets[0][0].plans[0]
    state = optimizer.state[parameter]
    found = []
    for r, region in enumerate(plan.regions):
        for i, cell in enumerate(np.ndindex(*region.grid)):
            corner = [o + c * d for o, c, d in zip(region.offset, cell, region.block_shape, strict=True)]
            found.append((corner, [state[f"{key}_{r}_{mode}"][i] for mode in range(len(region.grid))]))
    return [tensor for _, tensors in sorted(found, key=lambda entry: entry[0]) for tensor in tensors]


@pytest.mark.parametrize("name", CASES)
def test_published_trajectory(name: str, backend: str) -> None:
    data = np.load(GOLDEN / f"{name}.npz")
    case = json.loads(str(data["config"]))
    tolerance = TOLERANCE[case["algorithm"]]
    parameter = torch.nn.Parameter(torch.from_numpy(data["initial"].copy()))
    optimizer = published(case, parameter, backend)
    for gradient, expected in zip(data["gradients"], data["parameters"], strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient)
    for key in ("factor", "root"):
        ours = row_major_blocks(optimizer, parameter, key)
        assert len(ours) == sum(entry.startswith(f"{key}_") for entry in data.files)
        for i, tensor in enumerate(ours):
            expected = data[f"{key}_{i}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=tolerance, atol=tolerance * scale)


def test_all_published_cases_are_covered() -> None:
    assert len(CASES) == 14
