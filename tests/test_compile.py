"""`torch.compile(optimizer.step)`: with `capturable` one graph for each param batch; else the eager step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from marks import slow
from torch._dynamo.utils import counters
from training import SMALL, parameters, relative_difference, set_gradients, train

from kradagrad_ext import KrADagrad

SHAPES = ((12, 8), (7,))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_and_eager(
    compiler: str, lrs: list[Any], shapes: Sequence[tuple[int, ...]] = SHAPES, **options: Any
) -> float:
    """Take steps with these learning rates; return the parameters' relative difference from eager steps."""
    ours, eager = parameters(*shapes), parameters(*shapes)
    optimizer, other = KrADagrad(ours, **(SMALL | options)), KrADagrad(eager, **(SMALL | options))
    train(optimizer, ours, range(1))
    train(other, eager, range(1))
    step = torch.compile(optimizer.step, backend=compiler)
    for number, lr in enumerate(lrs, 1):
        for stepped, params in ((optimizer, ours), (other, eager)):
            stepped.param_groups[0]["lr"] = lr
            set_gradients(params, number)
        step()
        other.step()
    return relative_difference(ours, eager)


NUMBERS, TENSORS = [0.03, 0.01, 0.02], [torch.tensor(0.03), torch.tensor(0.01)]


@pytest.mark.parametrize(
    ("compiler", "lrs"),
    [
        pytest.param("eager", NUMBERS, id="numbers"),
        pytest.param("eager", TENSORS, id="tensors"),
        pytest.param("aot_eager", [*NUMBERS, *TENSORS], id="functionalised", marks=slow),
    ],
)
def test_a_param_batch_is_one_graph_for_every_learning_rate(
    compiler: str, lrs: list[Any], backend: str
) -> None:
    """Steps have the bits of eager ones if the graph runs operation by operation; all breaks are explicit."""
    difference = compiled_and_eager(compiler, lrs, capturable=True, backend=backend)
    assert counters["stats"]["unique_graphs"] == 1
    assert difference <= (0 if compiler == "eager" else 1e-6)
    assert counters["graph_break"]
    assert all("torch.compiler.disable" in reason for reason in counters["graph_break"])


@slow
def test_packed_states_of_two_groups_are_two_graphs() -> None:
    params = parameters(*SHAPES, (8, 6))
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    optimizer = KrADagrad(groups, **SMALL, packed=True, capturable=True, nesterov=True)
    train(optimizer, params, range(1))
    step = torch.compile(optimizer.step, backend="aot_eager")
    for number in range(1, 4):
        set_gradients(params, number)
        step()
    assert counters["stats"]["unique_graphs"] == 2


def test_without_capturable_nothing_is_compiled() -> None:
    """The work differs from step to step: the schedule would cause repeated compilation."""
    difference = compiled_and_eager("eager", [0.03, 0.01, 0.02, 0.01])
    assert counters["stats"]["unique_graphs"] == 0
    assert difference == 0


@slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inductor's
def test_inductor_takes_the_same_steps() -> None:
    difference = compiled_and_eager("inductor", [0.03, 0.01], ((8, 8),), capturable=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert difference < 1e-5
