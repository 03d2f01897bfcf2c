"""Which backend `resolve` picks, what it logs and how it refuses."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from kradagrad_ext import backends
from kradagrad_ext.build_info import BuildInfo

CPU = torch.device("cpu")
NAMES = ("native", "reference")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No override from the environment, and no fallback logged before."""
    monkeypatch.delenv("KRADAGRAD_BACKEND", raising=False)
    backends._log_fallback.cache_clear()
    yield
    backends._log_fallback.cache_clear()


@pytest.fixture
def broken_native(monkeypatch):
    """A native backend that cannot run anywhere, in a build that was meant to have one."""
    module = SimpleNamespace(name="native", available=lambda device, dtype=None: "its library is missing")
    monkeypatch.setitem(sys.modules, backends._REGISTRY["native"], module)
    built = BuildInfo("auto", "none", "no C++ compiler was found")
    monkeypatch.setattr(backends.build_info, "read", lambda: built)


def test_every_backend_is_reported_with_a_reason_or_none():
    reasons = backends.available_backends(CPU)
    assert tuple(reasons) == NAMES
    assert reasons["reference"] is None
    assert reasons["native"] is None or len(reasons["native"]) > 10


def test_auto_takes_the_first_that_runs():
    usable = [name for name, reason in backends.available_backends(CPU).items() if reason is None]
    assert backends.resolve("auto", CPU, torch.float32).name == usable[0]


def test_auto_on_another_device_is_the_reference(caplog):
    with caplog.at_level(logging.INFO, "kradagrad_ext"):
        assert backends.resolve("auto", torch.device("meta"), torch.float32).name == "reference"
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.usefixtures("broken_native")
def test_fallback_is_logged_once_and_says_why(caplog):
    for _ in range(3):
        assert backends.resolve("auto", CPU, torch.float32).name == "reference"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "kradagrad_ext"
    assert "its library is missing" in record.message
    assert "no C++ compiler was found" in record.message


@pytest.mark.usefixtures("broken_native")
def test_fallback_of_a_build_without_native_is_no_warning(caplog, monkeypatch):
    built = BuildInfo("none", "none", "it was left out by KRADAGRAD_BUILD=none")
    monkeypatch.setattr(backends.build_info, "read", lambda: built)
    with caplog.at_level(logging.INFO, "kradagrad_ext"):
        backends.resolve("auto", CPU, torch.float32)
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.usefixtures("broken_native")
def test_backend_asked_for_by_name_says_why_it_cannot_run():
    with pytest.raises(RuntimeError, match=r"`backend` native cannot run .*: its library is missing"):
        backends.resolve("native", CPU, torch.float32)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="`backend` must be one of auto, native, reference, got 'fast'"):
        backends.resolve("fast", CPU, torch.float32)


def test_environment_overrides_the_argument(monkeypatch):
    monkeypatch.setenv("KRADAGRAD_BACKEND", "reference")
    assert backends.resolve("auto", CPU, torch.float32).name == "reference"
    monkeypatch.setenv("KRADAGRAD_BACKEND", "fast")
    with pytest.raises(ValueError, match="KRADAGRAD_BACKEND must be one of"):
        backends.resolve("reference", CPU, torch.float32)
