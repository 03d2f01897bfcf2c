"""Variants of the default: each step does what its name says, and an interrupted comparison goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.arena.parameters import ModelParameters
from bench.arena.run import NOT_FINITE, OK, ArenaRun, Outcome
from bench.arena.store import RunRecord
from bench.tuning import variants
from bench.tuning.variants import RATE, VARIANTS, ChangedSteps, OnModel, table


def stepped(kind: type[OnModel], steps: int = 3) -> tuple[OnModel, nn.Linear, list[torch.Tensor]]:
    """Return a variant, its model and the weight before every step and after the last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8))
    optimizer, layer, weights = kind(model, RATE), model[0], []
    for _ in range(steps):
        weights.append(layer.weight.detach().clone())
        optimizer.zero_grad()
        (model(torch.randn(32, 12)) - 1).square().mean().backward()
        optimizer.step()
    return optimizer, layer, [*weights, layer.weight.detach().clone()]


def test_cautious_steps_never_move_against_the_gradient() -> None:
    _, layer, weights = stepped(variants.Cautious)
    move = weights[-1] - weights[-2]
    assert (move * layer.weight.grad <= 0).all()
    assert (move == 0).any()
    assert (move != 0).any()


def test_cautious_decay_pulls_elements_that_the_step_moves_towards_zero() -> None:
    _, _, plain = stepped(variants.AveragedWeights, 1)
    _, _, decayed = stepped(variants.CautiousDecay, 1)
    before, after = plain
    towards_zero = (after - before) * before < 0
    torch.testing.assert_close(decayed[1], after - RATE * before * towards_zero)


@pytest.mark.parametrize("kind", [variants.ConstantNorm, variants.Hyperball])
def test_norms_stay(kind: type[ChangedSteps]) -> None:
    _, _, weights = stepped(kind)
    for weight in weights[1:]:
        assert weight.norm().item() == pytest.approx(weights[0].norm().item(), rel=1e-5)
        assert not torch.equal(weight, weights[0])


def test_an_update_of_constant_length() -> None:
    optimizer, layer, _ = stepped(variants.Hyperball, 1)
    (p, _), length = optimizer.matrices[0], optimizer.lengths[0]
    assert p is layer.weight
    old = torch.randn_like(p)
    with torch.no_grad():
        p.copy_(old + 5 * torch.eye(*p.shape))
        optimizer.change_(p, old, length, 0.1)
    moved = old + torch.eye(*p.shape) * (0.1 * length / len(p) ** 0.5)
    torch.testing.assert_close(p.detach(), moved * (length / moved.norm()))


def test_averages_are_there_for_validation_alone() -> None:
    optimizer, layer, weights = stepped(variants.AveragedWeights, 3)
    optimizer.eval()
    torch.testing.assert_close(layer.weight, sum(weights[1:]) / 3)
    optimizer.train()
    assert torch.equal(layer.weight, weights[-1])
    optimizer.train()
    assert torch.equal(layer.weight, weights[-1])


def test_memory_grows_with_the_steps() -> None:
    optimizer, _, _ = stepped(variants.GrowingMemory, 3)
    assert optimizer.param_groups[0]["factor_decay"] == 0.8
    optimizer.number = 99
    optimizer.step()
    assert optimizer.param_groups[0]["factor_decay"] == 0.9


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_made_with_the_default_rate(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    (optimizer,) = VARIANTS[name](ModelParameters.of(model, ()), RATE)
    model(torch.ones(2, 6)).sum().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert {group["lr"] for group in optimizer.param_groups} == {RATE}
    assert not torch.equal(model[0].weight, before)


def test_the_table_has_medians_and_numbers_of_seeds() -> None:
    losses = {
        ("the default", 0): 1.0,
        ("the default", 1): 3.0,
        ("the default", 2): 2.0,
        ("graft rms", 0): 4.0,
    }
    records = [
        RunRecord(
            ArenaRun("images", name, RATE, 0.0, 10, seed), Outcome(loss, 1.0, 0.1, 1, OK, []), ("",) * 4
        )
        for (name, seed), loss in losses.items()
    ]
    assert table(records).splitlines() == [
        "|  | images |",
        "| --- | --- |",
        "| the default | 2 (3 seeds) |",
        "| graft rms | 4 |",
    ]


def test_only_missing_runs_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train_all(upcoming, workers, train):
        while (run := next(upcoming(), None)) is not None:
            trained.append(run)
            status = NOT_FINITE if run.optimizer == "graft rms" else OK
            yield RunRecord(run, Outcome(float("nan"), 1.0, 0.1, 1, status, []), ("",) * 4)

    monkeypatch.setattr(variants, "train_all", train_all)
    options = ["--tasks", "curves", "--steps", "5", "--csv", str(tmp_path / "variants.csv"), "--variants"]
    variants.main([*options, "graft rms"])
    variants.main([*options, "graft rms", "the default"])
    assert [run.optimizer for run in trained] == ["graft rms", "the default"]
    assert {(run.steps, run.seed, run.lr) for run in trained} == {(5, 0, RATE)}
    assert "| the default | nan |" in capsys.readouterr().out
