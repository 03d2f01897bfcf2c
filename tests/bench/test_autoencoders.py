"""The paper's autoencoders: data, models, optimizers, one run, resumption and the report, at small sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

pytest.importorskip("scipy", reason="the arena's tests of significance are scipy's: pip install '.[arena]'")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install '.[arena]'")
pytest.importorskip("matplotlib")

from bench.arena import command as arena_command
from bench.arena.measures import Results
from bench.arena.parameters import ModelParameters
from bench.arena.report import markers
from bench.arena.run import NOT_FINITE, OK, ArenaRun, Outcome
from bench.arena.store import RunRecord, Store
from bench.common import RECORDED
from bench.experiments.autoencoders import command, training
from bench.experiments.autoencoders.faces import RANGES, draw_faces
from bench.experiments.autoencoders.optimizers import PUBLISHED, optimizers_of
from bench.experiments.autoencoders.report import LOOKS, NOTHING, PAPER, PLOT, report, save_plot
from bench.experiments.autoencoders.tasks import (
    AUTOENCODERS,
    BATCH,
    Autoencoder,
    DrawnFaces,
    PlacedDigits,
    ThreePointCurves,
)
from bench.experiments.shampoo import Shampoo, inverse_fourth_root

WHERE = ("sha", "a machine", "torch", "now")


@pytest.fixture(params=AUTOENCODERS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Autoencoder]:
    monkeypatch.setattr(AUTOENCODERS[request.param], "validation_images", 20)
    return AUTOENCODERS[request.param]


class SmallCurves(ThreePointCurves):
    """Small enough for seconds; its matrices stay matrices in blocks of 100."""

    sizes = (784, 24, 6)
    validation_images = 12


@pytest.fixture(scope="module")
def small() -> Autoencoder:
    return SmallCurves(60)


def test_data_is_the_same_every_time(kind: type[Autoencoder]) -> None:
    first, second = kind(30), kind(30)
    assert torch.equal(first.training, second.training)
    assert torch.equal(first.validation[0][0], second.validation[0][0])
    assert torch.equal(next(first.batches(3))[0], next(second.batches(3))[0])
    assert not torch.equal(next(first.batches(3))[0], next(first.batches(4))[0])


def test_data_has_the_shape_and_range_of_the_papers(kind: type[Autoencoder]) -> None:
    task = kind(40)
    (validation,) = task.validation[0]
    assert task.training.shape == (40, task.sizes[0])
    assert validation.shape == (20, task.sizes[0])
    assert next(task.batches(0))[0].shape == (BATCH, task.sizes[0])
    assert task.training.dtype == torch.float32
    assert not torch.equal(task.training[:20], validation)
    if kind is DrawnFaces:
        assert abs(task.training.mean()) < 0.2
        assert task.training.square().mean() == pytest.approx(1, abs=0.25)
    else:
        assert task.training.min() == 0
        assert 0.9 < task.training.max() <= 1
        assert (task.training.sum(1) > 10).all()


def test_the_mean_face_is_the_best_constant_image() -> None:
    """Its loss is 1: that is what the faces' scale means."""
    task = DrawnFaces(2000)
    assert task.reconstruction_loss(torch.zeros_like(task.training), task.training) == pytest.approx(
        1, abs=0.05
    )


def test_validation_has_other_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def images(task: PlacedDigits, count: int, generator: Generator | None) -> Tensor:
        drawn.append(task.digits.flatten(1))
        return torch.zeros(count, 784)

    monkeypatch.setattr(PlacedDigits, "images", images)
    PlacedDigits(10)
    first, last = {tuple(row.tolist()) for row in drawn[0]}, {tuple(row.tolist()) for row in drawn[-1]}
    assert len(first) + len(last) == 1797
    assert not first & last


@pytest.mark.parametrize("number", range(len(RANGES)), ids=list(RANGES))
def test_each_number_changes_a_face(number: int) -> None:
    faces = torch.full((2, len(RANGES)), 0.4)
    faces[1, number] = 0.9
    first, second = draw_faces(faces)
    assert (first - second).abs().max() > 0.02


def test_models_have_the_papers_layers(kind: type[Autoencoder]) -> None:
    with torch.device("meta"):
        layers = list(kind.make_model(kind))  # type: ignore[arg-type]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    assert widths == [*kind.sizes, *kind.sizes[-2::-1]]
    before_code = layers.index(linear[len(kind.sizes) - 2])
    assert isinstance(layers[before_code + 1], nn.Linear)  # the code has no activation
    assert layers[-1] is linear[-1]
    assert sum(isinstance(layer, nn.ReLU) for layer in layers) == len(linear) - 2


def test_losses_are_the_authors() -> None:
    generator = Generator().manual_seed(0)
    outputs, images = torch.randn(5, 784, generator=generator), torch.rand(5, 784, generator=generator)
    by_hand = -(images * outputs.log_softmax(1)).sum() / 5
    curves, faces = (kind.reconstruction_loss for kind in (ThreePointCurves, DrawnFaces))
    assert curves(None, outputs, images) == pytest.approx(by_hand.item(), rel=1e-5)  # type: ignore[arg-type]
    assert faces(None, outputs, images) == pytest.approx((outputs - images).square().mean().item())  # type: ignore[arg-type]


def test_the_grids_surround_the_published_rates() -> None:
    for task in AUTOENCODERS.values():
        chosen = optimizers_of(task)
        assert list(chosen) == list(command.NAMES) == list(LOOKS)
        for name, (rate, second) in PUBLISHED[task.name].items():
            for key in ("shampoo64", "shampoo32") if name == "shampoo" else (name,):
                low, middle, high = chosen[key].rates
                assert middle == rate
                assert high / low == pytest.approx(10, rel=1e-6)
                assert chosen[key].middle == second


@pytest.mark.parametrize("name", command.NAMES)
def test_every_optimizer_trains(small: Autoencoder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls, all parameters move, and everything is in the optimizer's dtype."""
    chosen = optimizers_of(SmallCurves)[name]
    model = small.model(0).to(chosen.dtype)
    before = [p.detach().clone() for p in model.parameters()]
    (optimizer,) = chosen.make(ModelParameters.of(model, ()), chosen.rates[0], chosen.middle)
    batches, first = small.batches(0), small.validate(model)
    for _ in range(2):
        loss = small.loss(model, next(batches))
        loss.backward()
        optimizer.step()
        model.zero_grad()
        assert loss.dtype == chosen.dtype
    assert small.validate(model) < first
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
    assert chosen.dtype != torch.float64 or all(t.dtype == torch.float64 for t in state)


@pytest.mark.parametrize("name", ["sgd", "shampoo64", "defaults"])
def test_a_run_keeps_its_best_validation(
    small: Autoencoder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "autoencoder_of", lambda name: small)
    outcome = training.train(ArenaRun("curves", name, 1e-3, 0.9, 3, 1))
    assert outcome.status == OK
    assert [step for step, _, _ in outcome.curve] == [0, 1, 2, 3]
    assert outcome.val_loss == min(loss for _, _, loss in outcome.curve[1:])
    assert outcome.state_bytes > 0
    again = training.train(ArenaRun("curves", name, 1e-3, 0.9, 3, 1))
    assert again.val_loss == outcome.val_loss


def test_a_run_that_is_not_finite_loses(small: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "autoencoder_of", lambda name: small)
    outcome = training.train(ArenaRun("curves", "sgd", 1e30, 0.9, 5, 1))
    assert outcome.status == NOT_FINITE
    assert math.isnan(outcome.val_loss)


def test_shampoo_preconditions_blocks_separately() -> None:
    """U of each block is L^(-1/4) G R^(-1/4) of this block; the length is that of the whole gradient."""
    generator = Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(7, 5, generator=generator, dtype=torch.float64))
    p.grad = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    start, eps, decay, lr = p.detach().clone(), 1e-3, 0.1, 0.5
    expected = torch.empty_like(p.grad)
    for rows in (slice(0, 4), slice(4, 7)):
        for columns in (slice(0, 4), slice(4, 5)):
            g = p.grad[rows, columns]
            left, right = (
                inverse_fourth_root(eps * torch.eye(len(s), dtype=s.dtype) + s, eps)
                for s in (g @ g.mT, g.mT @ g)
            )
            expected[rows, columns] = left @ g @ right
    expected *= p.grad.norm() / expected.norm()
    Shampoo([p], lr, weight_decay=decay, eps=eps, root_every=1, block_size=4).step()
    torch.testing.assert_close(p.detach(), start - lr * (expected + decay * start))


def pretend(run: ArenaRun) -> Outcome:
    """Stand in for training: the best rate is 1e-2, and rates of 1 or more are not finite."""
    if run.lr >= 1:
        return Outcome(math.nan, 1.0, 0.5, 8, NOT_FINITE, [(0, 0.0, 9.0)])
    loss = 1 + abs(math.log10(run.lr) + 2) + 0.01 * run.seed
    return Outcome(loss, 2.0, 0.5, 2**20, OK, [(0, 0.0, 9.0), (run.steps, 2.0, loss)])


def interrupted_after(count: int) -> Callable[..., Iterator[RunRecord]]:
    """Return `train_all` in this process, which ends as by Ctrl-C after some records."""

    def records(
        upcoming: Callable[[], Iterator[ArenaRun]], workers: int, trainer: object
    ) -> Iterator[RunRecord]:
        assert trainer is training.train
        for _ in range(count):
            if (run := next(upcoming(), None)) is None:
                return
            yield RunRecord(run, pretend(run), WHERE)
        raise KeyboardInterrupt

    return records


def test_an_interrupted_measurement_resumes_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "autoencoders.csv"
    monkeypatch.setattr(command, "UNRECORDED", tmp_path)
    arguments = ["run", "--csv", str(path), "--tasks", "curves", "--optimizers", "sgd", "shampoo64"]
    monkeypatch.setattr(arena_command, "train_all", interrupted_after(5))
    assert command.main(arguments) == 130
    first = path.read_text()
    assert len(first.splitlines()) == 1 + 5
    monkeypatch.setattr(arena_command, "train_all", interrupted_after(1000))
    assert command.main(arguments) == 0
    assert path.read_text().startswith(first)
    records = Store(path).records
    assert len({record.run for record in records}) == len(records)
    best = {(one.run.optimizer, one.run.lr, one.run.seed) for one in records if one.run.seed}
    assert best == {(name, 1e-2, seed) for name in ("sgd", "shampoo64") for seed in (1, 2, 3)}
    assert "| SGD | 519.07 |" in capsys.readouterr().out
    assert (tmp_path / PLOT).stat().st_size > 10_000


def records_of(losses: dict[str, list[float]], task: str = "curves") -> list[RunRecord]:
    """Return a record of the search and one for every loss of an optimizer."""
    made = []
    for name, values in losses.items():
        for seed, loss in enumerate([1.0, *values]):
            run = ArenaRun(task, name, 1e-3, 0.9, 10, seed)
            status = OK if math.isfinite(loss) else NOT_FINITE
            made.append(RunRecord(run, Outcome(loss, 2.0, 0.5, 2**20, status, [(10, 2.0, loss)]), WHERE))
    return made


def test_the_report_has_means_and_ranges_beside_the_papers_figures() -> None:
    text = report(records_of({"sgd": [3.0, 5.0], "adam": [2.0, 3.0], "star": [4.0, math.nan]}), "plot.png")
    assert "6 runs" not in text
    assert "9 runs; seeds 1, 2 of the best rates; steps: 10 on `curves`." in text
    assert "| SGD | 519.07 |  | 170.52 | 4 (3 to 5) | .04110 |  |" in text
    assert "| Adam | 517.35 |  | 169.45 | **2.5** (2 to 3) | .03785 |  |" in text
    assert "| published star | 516.79 |  | 169.18 | not finite | .03682 |  |" in text
    assert "| KrADagrad, its defaults |  |  |  |  |  |  |" in text
    assert "| curves | SGD | 0.001 | 0.001 | momentum 0.9 | 200 | 1.0 |" in text
    assert "| curves | published star | 0.001 | 2 | not finite |" in text
    assert "(plot.png)" in text
    assert "plot.png" not in report(records_of({"sgd": [3.0]}))


def test_the_report_of_no_runs_has_the_papers_figures() -> None:
    text = report([])
    assert text.startswith(NOTHING)
    assert all(figure in text for figures in PAPER.values() for figure in figures)


def test_the_plot_has_a_panel_a_task(tmp_path: Path) -> None:
    records = records_of({"sgd": [3.0], "defaults": [2.0]})
    records += [dataclasses.replace(one, run=dataclasses.replace(one.run, task="faces")) for one in records]
    save_plot(Results(records), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_page_has_the_report_of_the_recorded_runs() -> None:
    page, (begin, end) = command.PAGE.read_text(), markers(command.PART)
    text = page.split(begin)[1].split(end)[0].strip()
    recorded = Store(RECORDED / "autoencoders.csv").records
    assert text == report(recorded, f"images/{PLOT}").strip()


def test_the_quick_form_is_never_recorded() -> None:
    with pytest.raises(SystemExit, match="not for --quick"):
        command.main(["run", "--quick", "--record"])
