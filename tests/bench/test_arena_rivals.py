"""The arena's optimizers: each installed one moves every kind of parameter; state and schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.arena import rivals
from bench.arena.parameters import ModelParameters
from bench.arena.rivals import RIVALS, Rival
from bench.arena.run import (
    NOT_FINITE,
    OK,
    ArenaRun,
    ScheduledOptimizers,
    evaluation_steps,
    rate_factor,
    tensors_in,
    train_on,
)
from bench.arena.tasks.base import ArenaTask, Batch

HERE = [
    pytest.param(rival, id=name, marks=[] if rival.installed else pytest.mark.skip(rivals.missing()[name]))
    for name, rival in RIVALS.items()
]
"""Every rival; those whose package is missing are skipped, with the reason."""


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 12))


class AllKinds(nn.Module):
    """A parameter of every kind: embedding, hidden matrix, head, convolution, experts, vectors, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 12)
        self.convolution = nn.Conv2d(4, 6, 3)
        self.experts = Experts()
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(12, 5)


class Attraction(ArenaTask):
    """The squared distance of every parameter to noise around fixed targets."""

    name, steps, ends = "attraction", 12, ("embed.weight", "head.weight")
    scale = 1.0

    def __init__(self) -> None:
        self.validation = [(torch.zeros(1),)]

    def make_model(self) -> nn.Module:
        return AllKinds()

    def batch(self, generator: torch.Generator | None) -> Batch:
        return (torch.randn(1, generator=generator),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        targets = torch.Generator().manual_seed(7)
        distances = [
            (p - torch.randn(p.shape, generator=targets) - 0.01 * batch[0]).square().sum()
            for p in model.parameters()
            if p.requires_grad
        ]
        return self.scale * torch.stack(distances).sum()


def run_of(rival: Rival, steps: int, lr: float | None = None) -> ArenaRun:
    return ArenaRun("attraction", rival.name, lr or rival.rates[3], rival.middle, steps, 0)


@pytest.mark.parametrize("rival", HERE)
def test_a_rival_moves_every_parameter_towards_less_loss(rival: Rival) -> None:
    task = Attraction()
    model = task.model(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = ScheduledOptimizers(rival, task, model, run_of(rival, 40))
    first = task.validate(model)
    for step, batch in zip(range(40), task.batches(0), strict=False):
        task.loss(model, batch).backward()
        optimizers.step(step)
    optimizers.switch("eval")
    unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert unmoved == {"frozen.weight", "frozen.bias"}
    assert task.validate(model) < first
    assert optimizers.state_bytes() > 0


@pytest.mark.parametrize("rival", HERE)
def test_a_run_is_determined_by_its_seed(rival: Rival) -> None:
    task = Attraction()
    first, again = (train_on(task, rival, run_of(rival, 12)) for _ in range(2))
    assert first.status == OK
    assert [point[2] for point in first.curve] == [point[2] for point in again.curve]


def test_every_rival_has_five_rates_that_rise_by_three_and_three_values() -> None:
    assert len(RIVALS) == 11
    for rival in RIVALS.values():
        assert len(rival.rates) == 5
        ratios = [high / low for low, high in zip(rival.rates, rival.rates[1:], strict=False)]
        assert all(2.99 < ratio < 3.34 for ratio in ratios)
        assert len(set(rival.values)) == 3
        assert list(rival.values) == sorted(rival.values)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Rival("gone", "Gone", "no_such_package", (1.0,) * 5, "x", (0.0, 1.0, 2.0), rivals.adamw)
    monkeypatch.setitem(RIVALS, "gone", gone)
    assert "no_such_package" in rivals.missing()["gone"]
    assert "adamw" not in rivals.missing()


def test_views_share_memory_and_gradients() -> None:
    model = AllKinds()
    parameters = ModelParameters.of(model, Attraction.ends)
    shapes = [tuple(p.shape) for p in parameters.matrices]
    assert shapes == [(12, 8), (6, 36), (8, 12), (8, 12), (8, 12)]
    assert len(parameters.ends) == 2
    assert len(parameters.vectors) == 6
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    parameters.share_gradients()
    convolution, *experts = parameters.matrices[1:]
    assert torch.equal(convolution.grad, model.convolution.weight.grad.flatten(1))
    assert torch.equal(torch.stack([p.grad for p in experts]), model.experts.weight.grad)
    with torch.no_grad():
        convolution.zero_()
        experts[1].zero_()
    assert model.convolution.weight.abs().max() == 0
    assert model.experts.weight.detach().abs().amax((1, 2)).ne(0).tolist() == [True, False, True]


def test_muon_takes_the_hidden_matrices_and_its_auxiliary_rate() -> None:
    model = AllKinds()
    hidden, rest = RIVALS["muon"].make(ModelParameters.of(model, Attraction.ends), 0.02, 0.003)
    assert len(hidden.param_groups[0]["params"]) == 5
    assert hidden.param_groups[0]["lr"] == 0.02
    assert rest.param_groups[0]["lr"] == 0.003
    assert model.embed.weight in set(rest.param_groups[0]["params"])


def test_kradagrad_has_its_default_options_beside_rate_and_decay() -> None:
    from kradagrad_ext import KrADagrad

    (ours,) = RIVALS["kradagrad"].make(ModelParameters.of(AllKinds(), ()), 0.01, RIVALS["kradagrad"].middle)
    assert isinstance(ours, KrADagrad)
    plain = KrADagrad([nn.Parameter(torch.zeros(4, 4))]).defaults
    assert {key: value for key, value in ours.defaults.items() if value != plain[key]} == {}


def test_the_schedule() -> None:
    cosine, constant_rate = (rate_factor(RIVALS[name], 100) for name in ("adamw", "schedule_free"))
    factors = [cosine(step) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert factors[5 + 47] == pytest.approx((1 + math.cos(math.pi * 47 / 95)) / 2)
    assert factors[-1] < 0.001
    assert sorted(factors[5:], reverse=True) == factors[5:]
    constant = [constant_rate(step) for step in range(100)]
    assert constant == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 96])


def test_evaluations_are_spread_and_end_with_the_last_step() -> None:
    assert evaluation_steps(300) == set(range(12, 301, 12))
    assert evaluation_steps(3) == {1, 2, 3}


def test_state_is_counted_once_and_without_the_model() -> None:
    task = Attraction()
    optimizers = ScheduledOptimizers(RIVALS["adamw"], task, task.model(0), run_of(RIVALS["adamw"], 3))
    assert optimizers.state_bytes() == 0
    task.loss(optimizers.model, next(task.batches(0))).backward()
    optimizers.step(0)
    elements = sum(p.numel() for p in optimizers.model.parameters() if p.requires_grad)
    steps = 4 * len(optimizers.parameters.all)
    assert optimizers.state_bytes() == 2 * 4 * elements + steps


def test_tensors_are_found_in_nested_objects() -> None:
    class Holder:
        def __init__(self) -> None:
            self.inner = {"a": [torch.zeros(1), (torch.ones(2), None)]}
            self.itself = self

    assert [len(tensor) for tensor in tensors_in([Holder(), 3], set())] == [1, 2]


def test_a_run_that_is_not_finite_ends_and_loses() -> None:
    task = Attraction()
    task.scale = math.nan
    outcome = train_on(task, RIVALS["adamw"], run_of(RIVALS["adamw"], 50))
    assert outcome.status == NOT_FINITE
    assert math.isnan(outcome.val_loss)
    assert len(outcome.curve) == 1
