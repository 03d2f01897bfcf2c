"""The arena's protocol: what runs next, what is the best, what is skipped, and what a worker records."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.arena import command, protocol, rivals
from bench.arena.protocol import FULL, QUICK, RATES_ALONE, Budget, Choice, Study, beyond, next_runs, search
from bench.arena.rivals import RIVALS
from bench.arena.run import NOT_FINITE, OK, ArenaRun, Outcome
from bench.arena.store import Store
from bench.arena.workers import train_all

RIVAL = RIVALS["adamw"]
RATES, MIDDLE = RIVAL.rates, RIVAL.middle
Loss = Callable[[float, float], float]


def searched(loss: Loss, budget: Budget = FULL) -> tuple[dict[Choice, float], Choice | None]:
    """Return all runs of a search with these losses, and the best choice."""
    losses: dict[Choice, float] = {}
    while True:
        waiting, best = search(RIVAL, budget, losses)
        if not waiting:
            return losses, best
        assert not losses.keys() & set(waiting)
        losses |= {choice: loss(choice.lr, choice.value) for choice in waiting}


def distance(lr: float, best: float) -> float:
    return abs(math.log(lr / best))


def test_a_best_rate_inside_the_grid_takes_seven_runs() -> None:
    losses, best = searched(lambda lr, value: distance(lr, RATES[2]) + (value != 0.999))
    assert len(losses) == 7
    assert [choice.lr for choice in losses] == [*RATES, RATES[2], RATES[2]]
    assert best == Choice(RATES[2], 0.999)


@pytest.mark.parametrize(("peak", "rates"), [(1e-9, [1e-4, 3e-5]), (1e9, [1e-1, 3e-1])])
def test_an_edge_is_extended_twice_and_takes_nine_runs(peak: float, rates: list[float]) -> None:
    losses, best = searched(lambda lr, value: distance(lr, peak))
    assert [choice.lr for choice in losses][5:7] == rates
    assert len(losses) == 9
    assert best is not None
    assert best.lr == rates[-1]


def test_an_extension_that_is_worse_ends_the_search() -> None:
    losses, best = searched(lambda lr, value: distance(lr, RATES[-1]))
    assert len(losses) == 8
    assert best is not None
    assert best.lr == RATES[-1]


def test_runs_that_are_not_finite_lose() -> None:
    losses, best = searched(lambda lr, value: math.nan if lr > RATES[1] else -lr)
    assert best is not None
    assert best.lr == RATES[1]
    losses, best = searched(lambda lr, value: math.inf)
    assert best is None
    assert len(losses) == 9


def test_the_quick_budget_has_the_middle_rates_only() -> None:
    losses, best = searched(lambda lr, value: -lr, QUICK)
    assert [choice.lr for choice in losses] == list(RATES[1:4])
    assert best == Choice(RATES[3], MIDDLE)


def test_rates_beyond() -> None:
    assert [beyond(rate, 1) for rate in (1e-3, 3e-3, 1.0, 3.0)] == [3e-3, 1e-2, 3.0, 10.0]
    assert [beyond(rate, -1) for rate in (1e-3, 3e-3, 1.0, 3.0)] == [3e-4, 1e-3, 0.3, 1.0]
    with pytest.raises(ValueError, match=r"`rate` must be 1 or 3 times a power of ten, got 0\.02"):
        beyond(0.02, 1)


def test_every_rates_neighbours_are_the_grids() -> None:
    for rival in RIVALS.values():
        assert [beyond(rate, 1) for rate in rival.rates[:-1]] == list(rival.rates[1:])


def study(task: str = "curves", name: str = "adamw") -> Study:
    return Study(task, 10, RIVALS[name], FULL)


def test_five_seeds_follow_the_search() -> None:
    one, done = study(), {}
    assert one.total(done) == 12
    order = []
    while runs := list(next_runs([one], done)):
        run = runs[0]
        order.append(run)
        done[run] = distance(run.lr, RATES[1]) + abs(run.value - 0.999)
    assert [run.seed for run in order] == [0] * 7 + [1, 2, 3, 4, 5]
    assert {(run.lr, run.value) for run in order[7:]} == {(RATES[1], 0.999)}
    assert one.total(done) == one.finished(done) == 12


def test_a_search_of_rates_alone_ends_without_other_runs() -> None:
    one, done = Study("width 64", 10, RIVAL, RATES_ALONE), {}
    while runs := list(next_runs([one], done)):
        done[runs[0]] = distance(runs[0].lr, RATES[2])
    assert sorted(run.lr for run in done) == list(RATES)
    assert {(run.value, run.seed) for run in done} == {(MIDDLE, 0)}


def test_optimizers_of_a_task_take_turns_and_tasks_follow_one_another() -> None:
    studies = [study(task, name) for task in ("curves", "digits") for name in ("adamw", "sgd")]
    runs = list(next_runs(studies, {}))
    assert [(run.task, run.optimizer) for run in runs[:4]] == [("curves", "adamw"), ("curves", "sgd")] * 2
    assert {run.task for run in runs[:10]} == {"curves"}
    assert {run.task for run in runs[10:]} == {"digits"}


def outcome(loss: float) -> Outcome:
    return Outcome(loss, 1.23456, 0.5, 800, OK, [(0, 0.0, 9.0), (10, 1.23456, loss)])


def pretend(run: ArenaRun) -> Outcome:
    """Stand in for training; rates beyond 1e-2 are not finite."""
    if run.lr > 1e-2:
        return dataclasses.replace(outcome(math.nan), status=NOT_FINITE)
    return outcome(distance(run.lr, 3e-3) + 0.01 * run.seed + run.value)


def fail_crash_and_train(run: ArenaRun) -> Outcome:
    """Raise an error for seed 0, end the process for seed 1, and train for others."""
    if run.seed == 0:
        raise ValueError(f"no such thing\nas {run.task}")
    if run.seed == 1:
        os._exit(3)
    return pretend(run)


def hang(run: ArenaRun) -> Outcome:
    time.sleep(600)
    return outcome(0.0)


def interrupted_after(count: int) -> Callable[..., Iterator[object]]:
    """Return `train_all` in this process, which ends as by Ctrl-C after some records."""

    def records(
        upcoming: Callable[[], Iterator[ArenaRun]], workers: int, trainer: object
    ) -> Iterator[object]:
        from bench.arena.store import RunRecord

        for _ in range(count):
            if (run := next(upcoming(), None)) is None:
                return
            yield RunRecord(run, pretend(run), ("sha", "machine", "versions", "date"))
        raise KeyboardInterrupt

    return records


def test_an_interrupted_arena_resumes_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "arena.csv"
    arguments = ["run", "--csv", str(path), "--tasks", "curves", "--optimizers", "adamw", "sgd"]
    monkeypatch.setattr(command, "train_all", interrupted_after(9))
    assert command.main(arguments) == 130
    first = path.read_text()
    assert len(first.splitlines()) == 1 + 9
    monkeypatch.setattr(command, "print_report", lambda store, record: None)
    monkeypatch.setattr(command, "train_all", interrupted_after(1000))
    assert command.main(arguments) == 0
    whole = path.read_text()
    assert whole.startswith(first)
    records = Store(path).records
    assert len({record.run for record in records}) == len(records)
    assert [record.run.seed for record in records if record.run.optimizer == "adamw"].count(0) == 7
    assert command.main(arguments) == 0
    assert path.read_text() == whole
    assert "the same command goes on" in capsys.readouterr().err


def test_a_record_survives_its_csv(tmp_path: Path) -> None:
    from bench.arena.store import RunRecord

    path = tmp_path / "deep" / "arena.csv"
    run = ArenaRun("curves", "adamw", 3e-4, 0.99, 10, 0)
    where = ("sha", "a machine, 2 cores", "torch", "now")
    store = Store(path)
    store.add(RunRecord(run, outcome(1.5), where))
    store.add(
        RunRecord(dataclasses.replace(run, seed=1), dataclasses.replace(outcome(math.nan), curve=[]), where)
    )
    first, second = Store(path).records
    assert first.run == run
    assert first.circumstances == where
    assert first.outcome == dataclasses.replace(
        outcome(1.5), seconds=1.235, curve=[(0, 0.0, 9.0), (10, 1.235, 1.5)]
    )
    assert math.isnan(second.outcome.val_loss)
    assert [file.name for file in path.parent.iterdir()] == ["arena.csv"]


def test_a_csv_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arena.csv"
    path.write_text("task,loss\ncurves,1\n")
    with pytest.raises(ValueError, match=r"must have the columns task, optimizer, .* got \['task', 'loss'\]"):
        Store(path)


def all_records(trainer: Callable[[ArenaRun], Outcome], seeds: int, limit: float) -> list[Outcome]:
    """Return the outcomes of runs of these seeds by one worker; every run comes up until it is recorded."""
    runs = [ArenaRun("curves", "adamw", 1e-3, 0.99, 10, seed) for seed in range(seeds)]
    done: list[ArenaRun] = []
    outcomes = []
    for record in train_all(lambda: (run for run in runs if run not in done), 1, trainer, limit):
        done.append(record.run)
        outcomes.append(record.outcome)
        assert all(record.circumstances)
    assert done == runs
    return outcomes


def test_a_failure_is_recorded_and_the_next_run_trains() -> None:
    failed, crashed, *trained = all_records(fail_crash_and_train, 4, 300)
    assert failed.status == "ValueError: no such thing"
    assert crashed.status == "the process ended with status 3"
    assert math.isnan(failed.val_loss)
    assert math.isnan(crashed.val_loss)
    assert [(one.val_loss, one.status) for one in trained] == [
        (distance(1e-3, 3e-3) + 0.01 * seed + 0.99, OK) for seed in (2, 3)
    ]


def test_a_run_beyond_the_limit_is_ended() -> None:
    results = all_records(hang, 2, 1)
    assert [one.status for one in results] == ["longer than 1 s"] * 2
    assert all(1 <= one.seconds < 60 for one in results)


def test_missing_packages_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "arena.csv"
    with pytest.raises(SystemExit, match="soap: pytorch_optimizer is not installed"):
        command.main(["run", "--csv", str(path), "--optimizers", "soap", "--tasks", "curves"])
    assert not path.exists()


def test_quick_is_not_recorded() -> None:
    with pytest.raises(SystemExit, match="--record is for the whole protocol"):
        command.main(["run", "--quick", "--record"])


def test_the_usual_number_of_runs() -> None:
    assert (FULL.usual_runs, QUICK.usual_runs) == (12, 5)
    assert protocol.SEARCH_SEED == 0
