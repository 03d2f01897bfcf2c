"""Roots and factors keep float32's digits even if a training script allows TF32 for its model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import SMALL, parameters, relative_difference, train

from kradagrad_ext import KrADagrad
from kradagrad_ext.diagnostics import read_diagnostics
from kradagrad_ext.full_precision import MATMULS, full_float32

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}
PRODUCTS |= {torch.ops.aten.baddbmm_, torch.ops.aten.addmm_}
SHAPES = ((24, 16), (16, 16))


def truncate_to_tf32(tensor: Tensor) -> Tensor:
    """Truncate to the ten bits of mantissa that tensor cores read."""
    return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Mode that computes float32 products on a CPU as a GPU does if TF32 is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.reduced = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS and args[-1].dtype == torch.float32:
            self.products += 1
            if torch.backends.cuda.matmul.fp32_precision == "tf32":
                self.reduced += 1
                args = (*args[:-2], *map(truncate_to_tf32, args[-2:]))
        return func(*args, **(kwargs or {}))


def allow_by_legacy_setter() -> None:
    torch.set_float32_matmul_precision("high")


def allow_by_flag() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def allow_by_medium() -> None:
    torch.set_float32_matmul_precision("medium")


def allow_by_matmul() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def allow_everywhere() -> None:
    torch.backends.fp32_precision = "tf32"


def allow_by_both() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"


WAYS = [
    allow_by_legacy_setter,
    allow_by_flag,
    allow_by_medium,
    allow_by_matmul,
    allow_everywhere,
    allow_by_both,
]


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Restore the settings of a new process."""
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for matmul in MATMULS:
        matmul.fp32_precision = "none"


def state_of_torch() -> list[Any]:
    def read(get: Any) -> Any:
        try:
            return get()
        except RuntimeError:  # the two interfaces differ
            return RuntimeError

    return [
        *(matmul.fp32_precision for matmul in MATMULS),
        read(torch.get_float32_matmul_precision),
        read(lambda: torch.backends.cuda.matmul.allow_tf32),
        torch.backends.fp32_precision,
    ]


def trained(**options: Any) -> tuple[list[torch.nn.Parameter], KrADagrad]:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, backend="reference", root_method="polar", **options)
    train(optimizer, params, range(8))
    return params, optimizer


@pytest.mark.parametrize("allow", WAYS)
def test_tf32_for_the_model_changes_no_bit_of_a_step(allow: Any) -> None:
    expected, _ = trained()
    allow()
    before = state_of_torch()
    with Tf32() as mode:
        params, optimizer = trained()
    assert mode.products > 0
    assert mode.reduced == 0
    assert relative_difference(params, expected) == 0
    assert read_diagnostics(optimizer)[0]["roots_kept"] == 0
    assert state_of_torch() == before


def test_the_emulation_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard, TF32 costs the roots at least two digits."""
    _, plain = trained()
    monkeypatch.setattr("kradagrad_ext.engine.full_float32", contextlib.nullcontext)
    torch.set_float32_matmul_precision("high")
    with Tf32() as mode:
        _, optimizer = trained()
    assert mode.reduced > 0
    assert read_diagnostics(optimizer)[0]["root_residual"] > 100 * read_diagnostics(plain)[0]["root_residual"]


@pytest.mark.parametrize("capturable", [False, True])
def test_autocast_does_not_reach_a_step(capturable: bool) -> None:
    expected, _ = trained(capturable=capturable)
    with torch.autocast("cpu", torch.bfloat16):
        params, _ = trained(capturable=capturable)
        assert torch.is_autocast_enabled("cpu")
    assert relative_difference(params, expected) == 0


@pytest.mark.parametrize("allow", WAYS)
def test_settings_come_back_after_an_error(allow: Any) -> None:
    allow()
    before = state_of_torch()
    with contextlib.suppress(KeyError), full_float32():
        assert [matmul.fp32_precision for matmul in MATMULS] == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert state_of_torch() == before


def test_a_setting_for_all_still_follows_when_it_changes() -> None:
    torch.backends.fp32_precision = "tf32"
    with full_float32():
        pass
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_a_compiled_step_is_in_full_precision_too() -> None:
    torch.set_float32_matmul_precision("high")
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, backend="reference", capturable=True)
    train(optimizer, params, range(1))
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*args: Tensor) -> Any:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return graph(*args)

        return run

    optimizer.step = torch.compile(optimizer.step, backend=compiler)
    train(optimizer, params, range(1, 4))
    assert seen == ["ieee"] * 3
    torch._dynamo.reset()
