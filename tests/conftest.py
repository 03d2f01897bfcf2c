"""Fixtures shared by the suite."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from marks import in_turn

from kradagrad_ext.backends import available_backends

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.mend()

USABLE = [name for name, reason in available_backends(torch.device("cpu")).items() if reason is None]


if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes; child processes inherit the variable
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


SLOW_SHARE = int(os.environ.get("KRADAGRAD_SLOW_SHARE", "1"))
"""One in this many slow cases of every test runs; which ones depends on the commit."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases that -k and -m select, leave out the slow ones that this commit does not take."""
    if SLOW_SHARE == 1:
        return
    here = Path(__file__).parent
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=here, text=True)
    slow = [item for item in items if item.get_closest_marker("slow")]
    taken = in_turn([item.nodeid.split("[")[0] for item in slow], SLOW_SHARE, int(head[:8], 16))
    left_out = {item for item, is_taken in zip(slow, taken, strict=True) if not is_taken}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with a `backend` argument on every backend that this machine has."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", USABLE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
