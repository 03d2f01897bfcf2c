"""Fixtures shared by the suite."""

from __future__ import annotations

import pytest
import torch

from kradagrad_ext.backends import available_backends

USABLE = [name for name, reason in available_backends(torch.device("cpu")).items() if reason is None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `backend` argument runs on every backend that this machine has."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", USABLE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
