"""The arena's tasks: they train, depend on nothing but their seed, and keep the figures of bench.tuning."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.arena.parameters import ModelParameters
from bench.arena.rivals import RIVALS
from bench.arena.run import ArenaRun, Outcome, train_on
from bench.arena.tasks import poisson
from bench.arena.tasks.base import ArenaTask, trainable
from bench.arena.tasks.registry import TASKS, task_of
from bench.arena.tasks.text import CONTEXT, CodeText, LowRank, ManualText
from bench.arena.tasks.widths import LAYERS, WIDTHS
from bench.tuning.tasks import TASKS as TUNING_TASKS
from kradagrad_ext import param_groups


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ArenaTask]:
    """Return tasks by name as tests ask for them; LoRA's first model trains for two steps only."""
    folder = tmp_path_factory.mktemp("arena")

    class Made(dict[str, ArenaTask]):
        def __missing__(self, name: str) -> ArenaTask:
            if name == "digits":
                pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install '.[arena]'")
            kind = TASKS[name]
            if kind is LowRank:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(LowRank, "base_steps", 2)
                    LowRank.prepare(folder)
                self[name] = LowRank(folder)
            else:
                self[name] = kind()
            if name != "poisson":  # whose grid has to be whole
                self[name].validation = [tuple(t[:32] for t in batch) for batch in self[name].validation[:1]]
            return self[name]

    return Made()


def three_steps(task: ArenaTask, seed: int) -> Outcome:
    run = ArenaRun(task.name, "adamw", 3e-3, 0.99, 3, seed)
    return train_on(task, RIVALS["adamw"], run)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_and_depends_on_its_seed_alone(tasks: dict[str, ArenaTask], name: str) -> None:
    first = three_steps(tasks[name], 1)
    assert first.status == "ok"
    steps, _, losses = zip(*first.curve, strict=True)
    assert steps == (0, 1, 2, 3)
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == 4
    torch.manual_seed(12345)  # the state of torch's generator makes no difference
    again = three_steps(tasks[name], 1)
    assert [point[2] for point in again.curve] == list(losses)
    assert three_steps(tasks[name], 2).val_loss != first.val_loss


@pytest.mark.parametrize("name", TASKS)
def test_data_of_a_seed(tasks: dict[str, ArenaTask], name: str) -> None:
    """A seed has one stream of batches; no two batches are equal, and none is validation data."""
    task = tasks[name]
    streams = [list(islice(task.batches(seed), 3)) for seed in (0, 0, 1)]
    for batch, again in zip(*streams[:2], strict=True):
        assert all(map(torch.equal, batch, again))
    firsts = [stream[i][0] for stream in streams[1:] for i in range(3)]
    assert not any(torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])
    held_out = task.validation[0][0]
    assert not any(torch.equal(first[: len(held_out)], held_out[: len(first)]) for first in firsts)


@pytest.mark.parametrize("name", TASKS)
def test_every_end_names_one_matrix(tasks: dict[str, ArenaTask], name: str) -> None:
    task = tasks[name]
    named = [name for name, p in trainable(task.model(0)) if p.dim() > 1]
    found = {end: [name for name in named if name.endswith(end)] for end in task.ends}
    if name == "lora":  # embeddings and head are frozen
        assert not any(found.values())
    else:
        assert [len(names) for names in found.values()] == [1] * len(task.ends)
    parameters = ModelParameters.of(task.model(0), task.ends)
    assert parameters.matrices
    assert all(p.dim() == 2 for p in [*parameters.matrices, *parameters.ends])
    elements = sum(p.numel() for p in parameters.all)
    assert elements == sum(p.numel() for _, p in trainable(parameters.model))


@pytest.mark.parametrize("name", WIDTHS)
def test_models_of_a_width_differ_in_nothing_else(name: str) -> None:
    task = task_of(name)
    width = int(name.removeprefix("width "))
    shapes = [tuple(p.shape) for _, p in trainable(task.model(0)) if p.dim() == 2]
    assert shapes[:2] == [(256, width), (CONTEXT, width)]
    assert shapes[2:6] == [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    assert len(shapes) == 3 + 4 * LAYERS
    assert next(task.batches(0))[0].shape == (8, CONTEXT + 1)


def test_experts_are_a_batch_of_matrices_for_kradagrad(tasks: dict[str, ArenaTask]) -> None:
    model = tasks["experts"].model(0)
    groups = {group["name"]: group for group in param_groups(model, show=None)}
    experts = groups["experts"]
    assert experts["batch_dims"] == 1
    assert {tuple(p.shape) for p in experts["params"]} == {(4, 192, 96), (4, 96, 192)}
    parameters = ModelParameters.of(model, tasks["experts"].ends)
    assert sum(tuple(p.shape) == (192, 96) for p in parameters.matrices) == 4 * 4


def test_experts_compute_the_two_that_the_router_chooses(tasks: dict[str, ArenaTask]) -> None:
    torch.manual_seed(0)
    experts = tasks["experts"].model(0).blocks[0].experts
    nn.init.normal_(experts.router.weight)
    x = torch.randn(5, 96)
    wanted = torch.zeros_like(x)
    for token in range(5):
        weights = torch.softmax(experts.router.weight @ x[token], 0)
        best = weights.argsort(descending=True)[:2]
        for expert in best:
            hidden = nn.functional.gelu(experts.expand[expert] @ x[token])
            wanted[token] += weights[expert] / weights[best].sum() * (experts.project[expert] @ hidden)
    torch.testing.assert_close(experts(x), wanted, rtol=1e-4, atol=1e-6)


def test_lora_starts_as_the_trained_model_and_keeps_it(tasks: dict[str, ArenaTask]) -> None:
    task = tasks["lora"]
    assert isinstance(task, LowRank)
    model, base = task.model(1), CodeText().make_model()
    base.load_state_dict(task.base)
    windows = task.validation[0][0][:2]
    torch.testing.assert_close(task.loss(model, (windows,)), task.loss(base, (windows,)))
    assert len(trainable(model)) == 2 * 4 * len(model.blocks)
    with pytest.raises(FileNotFoundError, match=r"LowRank\.prepare"):
        LowRank(Path("nowhere"))


def test_the_two_texts_differ_and_hold_no_validation_text() -> None:
    code, manual = CodeText().text, ManualText().text
    for text in (code, manual):
        train, held_out = (bytes(part.numpy()) for part in (text.train, text.validation))
        assert len(train) > 300_000
        assert len(held_out) > 20_000
        assert held_out[:2000] not in train
    assert b"import" in bytes(code.train[:100_000].numpy())


def test_poisson_solves_its_equation() -> None:
    """The Laplacian of the exact solution is minus the source, and the solution vanishes on the edge."""

    class Exact(nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return poisson.solution(points)[:, None]

    task = poisson.Poisson()
    inside, edge = next(task.batches(0))
    residual = poisson.laplacian(Exact(), inside[:50]) + poisson.source(inside[:50])
    assert residual.abs().max() < 1e-3 * poisson.source(inside[:50]).abs().max()
    assert poisson.solution(edge).abs().max() < 1e-5
    assert ((edge == 0) | (edge == 1)).any(1).all()
    assert task.validate(Exact()) == pytest.approx(0, abs=1e-6)


def test_regression_is_as_ill_conditioned_as_it_says(tasks: dict[str, ArenaTask]) -> None:
    task = tasks["regression"]
    x = torch.cat([batch[0] for batch in islice(task.batches(0), 20)]).double()
    values = torch.linalg.eigvalsh(x.T @ x / len(x))
    assert 0.5e4 < values[-1] / values[0] < 2e4
    linear = task.make_model()
    exact = torch.linalg.lstsq(*(t.double() for t in task.batch(torch.Generator().manual_seed(5)))).solution
    with torch.no_grad():
        linear[0].weight.copy_(torch.eye(256))
        linear[1].weight.copy_(exact.T)
    assert task.validate(linear) < 1e-4


@pytest.mark.parametrize(
    ("name", "losses"),
    {
        "curves": (543.8732299804688, 543.8515625),
        "images": (2.8560309410095215, 2.9385948181152344),
    }.items(),
)
def test_generated_tasks_of_tuning_keep_their_figures(name: str, losses: tuple[float, float]) -> None:
    """The first two losses of seed 0 are those of the runs in bench/results/tuning.csv."""
    task = TUNING_TASKS[name](0)
    found = [task.loss().item() for _ in losses]
    assert found == pytest.approx(losses, rel=1e-4)


def test_the_text_of_tuning_is_the_examples() -> None:
    """Batches, validation and weights are those of examples/train_gpt.py for the same seed."""
    from gpt.data import Batches, load_text, validation_windows
    from gpt.model import GPT, next_byte_loss

    task = TUNING_TASKS["text"](3)
    text = load_text(None, CONTEXT)
    batches = Batches(text.train, 16, CONTEXT, 3)
    torch.manual_seed(3)
    model = GPT(CONTEXT, 5, 128, 4)
    for _ in range(2):
        assert task.loss().item() == pytest.approx(next_byte_loss(model, batches.next()).item(), rel=1e-6)
    wanted = validation_windows(text.validation, CONTEXT)
    assert torch.equal(torch.cat([batch[0] for batch in task._task.validation]), wanted)
    matrices, ends, vectors = task.parameters()
    assert [len(matrices), len(ends), len(vectors)] == [4 * 5, 3, len(trainable(task.model)) - 23]
