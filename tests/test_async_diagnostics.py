"""A reading of diagnostics waits for nothing, and ranks together report what one rank would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from diagnosed import RECIPES, trained
from torch import Tensor, nn
from training import SMALL, parameters, train
from watching import NoLooking

import kradagrad_ext
from kradagrad_ext import AsyncDiagnostics, KrADagrad
from kradagrad_ext.diagnostics import MEASURES, measure_group

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. .* of the elements of matrices are")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_reading_looks_at_nothing(recipe: dict[str, Any]) -> None:
    """The host reads no value before it asks for the result."""
    optimizer = trained(recipe)
    with NoLooking():
        reading = AsyncDiagnostics(optimizer, {"loss": torch.ones(1)})
    assert reading.ready()
    assert reading.result() == kradagrad_ext.read_diagnostics(optimizer)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_all_work_stays_on_the_device(recipe: dict[str, Any]) -> None:
    """State on meta has no values that the host could read, and is on another device than the host."""
    optimizer = trained(recipe)
    (group,) = optimizer.param_groups
    states = [{key: tensor.to("meta") for key, tensor in s.items()} for s in optimizer.state.values()]
    step = group["step"].to("meta") if isinstance(group["step"], Tensor) else group["step"]
    rows = {
        device.type: tally.row() for device, tally in measure_group({**group, "step": step}, states).items()
    }
    assert set(rows) == ({"meta"} if isinstance(step, Tensor) else {"cpu", "meta"})
    assert all(row.device.type == kind for kind, row in rows.items())


def test_a_reading_is_of_the_time_when_it_began() -> None:
    """Later steps, and later changes of the tensors passed along, do not show in it."""
    params = parameters((20, 13))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(3))
    loss = torch.tensor(2.0)
    reading, expected = (
        AsyncDiagnostics(optimizer, {"train/loss": loss}),
        kradagrad_ext.read_diagnostics(optimizer),
    )
    loss.zero_()
    train(optimizer, params, range(3, 6))
    assert reading.result() == expected
    assert reading.metrics()["train/loss"] == 2.0


def test_names_of_groups() -> None:
    """A group has its name if no other has it, since groups of one name would hide each other."""
    shapes = [(6, 4)] * 4
    names = [{"name": "embeddings"}, {}, {"name": "twice"}, {"name": "twice"}]
    groups = [{"params": [p], **options} for p, options in zip(parameters(*shapes), names, strict=True)]
    metrics = AsyncDiagnostics(KrADagrad(groups)).metrics("health")
    assert {name.split("/")[1] for name in metrics} == {"embeddings", "group1", "group2", "group3"}
    assert {name.split("/")[0] for name in metrics} == {"health"}
    assert all(isinstance(value, float) for value in metrics.values())


def test_bad_arguments() -> None:
    params = parameters((6, 4))
    with pytest.raises(TypeError, match="`optimizer` must be a KrADagrad, got SGD"):
        kradagrad_ext.read_diagnostics(torch.optim.SGD(params, lr=0.1))
    with pytest.raises(TypeError, match="`optimizer` must be a KrADagrad, got Linear"):
        AsyncDiagnostics(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`extra\['loss'\]` must be a tensor, got float"):
        AsyncDiagnostics(KrADagrad(params), {"loss": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"`extra\['loss'\]` must be a one-element tensor, got \[2\]"):
        AsyncDiagnostics(KrADagrad(params), {"loss": torch.ones(2)})


def reports_of_a_rank(rank: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """Return the reports of a rank, for parameters of DistributedDataParallel and of fully_shard."""
    reports = []
    for mode in ("ddp", "fsdp"):
        model = ranks.make_model()
        sharding = ranks.shard(model, mode)
        optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **options, **sharding)
        for step in range(5):
            ranks.backward(model, step)
            optimizer.step()
        reports += kradagrad_ext.read_diagnostics(optimizer)
    return reports


@pytest.mark.parametrize("options", [{}, {"packed": True, "precondition_1d": True}], ids=str)
def test_two_ranks_together_report_what_one_does(options: dict[str, Any], tmp_path: Path) -> None:
    """A rank reports on the blocks it owns, so the worst of both is the worst of one rank that has all.

    Both ranks report the same values for parameters.
    """
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **options)
    for step in range(5):
        ranks.backward(model, step)
        optimizer.step()
    (alone,) = kradagrad_ext.read_diagnostics(optimizer)
    for first, second in zip(*ranks.launch(2, reports_of_a_rank, tmp_path, options), strict=True):
        for name, fold in MEASURES.items():
            together = fold.join(torch.tensor([first[name], second[name]], dtype=torch.float64))
            # The residual of a root is rounding alone.
            allowed = 1e-10 if name in ("root_residual",) else 0
            assert float(together) == pytest.approx(alone[name], rel=1e-8, abs=allowed), name
        for name in ("steps", "smallest_graft_ratio", "largest_graft_ratio"):
            assert first[name] == second[name]
        assert first["condition"] != second["condition"]
