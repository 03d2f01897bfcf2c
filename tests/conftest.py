"""Fixtures shared by the suite."""

from __future__ import annotations

import os

import pytest
import torch

from kradagrad_ext.backends import available_backends

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.mend()

USABLE = [name for name, reason in available_backends(torch.device("cpu")).items() if reason is None]


if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes; child processes inherit the variable
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with a `backend` argument on every backend that this machine has."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", USABLE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
