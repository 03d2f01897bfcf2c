"""The backend that `resolve` picks, its log messages and its refusals."""

import inspect
import logging
import sys
from types import SimpleNamespace

import inputs
import pytest
import torch

from kradagrad_ext import backends
from kradagrad_ext.backends.base import Backend
from kradagrad_ext.build_info import BuildInfo

CPU = torch.device("cpu")
NAMES = ("native", "triton", "reference")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Remove the override from the environment, and forget the fallbacks that were logged."""
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
    monkeypatch.setattr(backends.build_info, "read_build_info", lambda: built)


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
    monkeypatch.setattr(backends.build_info, "read_build_info", lambda: built)
    with caplog.at_level(logging.INFO, "kradagrad_ext"):
        backends.resolve("auto", CPU, torch.float32)
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.usefixtures("broken_native")
def test_backend_asked_for_by_name_says_why_it_cannot_run():
    with pytest.raises(RuntimeError, match=r"`backend` native cannot run .*: its library is missing"):
        backends.resolve("native", CPU, torch.float32)


def test_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="`backend` must be one of auto, native, triton, reference, got 'fast'"
    ):
        backends.resolve("fast", CPU, torch.float32)


def test_environment_overrides_the_argument(monkeypatch):
    monkeypatch.setenv("KRADAGRAD_BACKEND", "reference")
    assert backends.resolve("auto", CPU, torch.float32).name == "reference"
    monkeypatch.setenv("KRADAGRAD_BACKEND", "fast")
    with pytest.raises(ValueError, match="KRADAGRAD_BACKEND must be one of"):
        backends.resolve("reference", CPU, torch.float32)


@pytest.mark.parametrize(
    ("capability", "side", "first"),
    [
        ((9, 0), 512, "triton"),
        ((9, 0), 256, "native"),
        ((10, 0), 257, "triton"),
        ((8, 0), 1024, "native"),
        ((12, 0), 512, "native"),
    ],
)
def test_auto_on_cuda_depends_on_side_and_architecture(monkeypatch, capability, side, first):
    """Triton takes large blocks from sm_90 on; native takes them if Triton is missing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    served = dict.fromkeys(NAMES)

    def module(name):
        return SimpleNamespace(name=name, available=lambda *_: served[name])

    for name in NAMES:
        monkeypatch.setitem(sys.modules, backends._REGISTRY[name], module(name))
    cuda = torch.device("cuda", 0)
    assert backends.resolve("auto", cuda, torch.float32, side).name == first
    served["triton"] = "no triton"
    assert backends.resolve("auto", cuda, torch.float32, side).name == "native"
    assert backends.resolve("reference", cuda, torch.float32, side).name == "reference"


def test_missing_triton_is_reported_with_its_remedy(monkeypatch):
    """Only a call that asks for Triton fails; the package imports and trains without it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in [name for name in sys.modules if name.startswith("kradagrad_ext.triton_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    backends.resolve("auto", CPU, torch.float32)
    with pytest.raises(RuntimeError, match=r"cannot run .*triton.* pip install 'triton>=3.3'"):
        backends.resolve("triton", CPU, torch.float32)


def test_triton_on_a_cpu_is_for_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="no Triton kernels for cpu, but with TRITON_INTERPRET=1"):
        backends.resolve("triton", CPU, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_has_every_op(name):
    """Ops have the contract's arguments; no type checker sees a module that is imported by its name."""
    module = backends._load(name)
    ops = [op for op in vars(Backend) if not op.startswith("_")]
    assert ops == [*inputs.ops()]
    for op in ops:
        arguments = list(inspect.signature(getattr(Backend, op)).parameters)[1:]
        assert list(inspect.signature(getattr(module, op)).parameters) == arguments, op
