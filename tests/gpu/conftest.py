"""Configuration: every test here runs once for each backend of the GPU; without a GPU all are skipped.

With KRADAGRAD_DRY_RUN=1, under a runtime whose kernels compute nothing, values are not judged.
"""

from __future__ import annotations

import os

import pytest
import torch

from kradagrad_ext.backends import available_backends

DRY_RUN = os.environ.get("KRADAGRAD_DRY_RUN") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = "no CUDA device: these tests are for a GPU"
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gpu_backend" not in metafunc.fixturenames:
        return
    reasons = available_backends(torch.device("cuda")) if torch.cuda.is_available() else {"native": None}
    metafunc.parametrize("gpu_backend", [name for name, reason in reasons.items() if reason is None])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if DRY_RUN:
        terminalreporter.write_line("KRADAGRAD_DRY_RUN=1: values of tests/gpu were NOT judged")
