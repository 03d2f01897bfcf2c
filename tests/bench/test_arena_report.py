"""The arena's measures against values computed by hand, and its report and plots from a small CSV."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="the arena's tests of significance are scipy's: pip install '.[arena]'")
pytest.importorskip("matplotlib")

from bench.arena import command, report
from bench.arena.measures import (
    SECONDS,
    STEPS,
    Results,
    first_and_tied,
    geometric_mean_interval,
    loss_at,
    mean_interval,
    median_interval,
    over_tasks,
    paired_p,
    profile,
    ratio_to_baseline,
    reached,
)
from bench.arena.run import NOT_FINITE, OK, ArenaRun, Curve, Outcome
from bench.arena.store import RunRecord, Store, write

CURVE: Curve = [(0, 0.0, 5.0), (10, 2.0, 3.0), (20, 4.0, 1.0)]
WHERE = ("sha", "machine", "versions", "date")


def test_a_loss_is_reached_between_two_points() -> None:
    assert reached(CURVE, 2.0, STEPS) == 15
    assert reached(CURVE, 2.0, SECONDS) == 3.0
    assert reached(CURVE, 3.0, STEPS) == 10
    assert reached(CURVE, 6.0, STEPS) == 0
    assert reached(CURVE, 0.5, STEPS) == math.inf
    assert reached([], 1.0, STEPS) == math.inf


def test_the_loss_at_a_time() -> None:
    assert [loss_at(CURVE, seconds) for seconds in (0, 1, 3, 4, 9)] == [5, 4, 2, 1, 1]


def test_the_mean_and_its_interval() -> None:
    """Of 1, 2, 3: deviation 1, t(0.975, 2) = 4.302653."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(mean_interval([1.0]).low)
    assert mean_interval([1.0, math.inf]).value == math.inf


def test_the_geometric_mean_and_its_interval() -> None:
    interval = geometric_mean_interval([0.5, 2.0])
    assert interval.value == pytest.approx(1.0)
    half = 12.7062047 * math.sqrt(2) * math.log(2) / math.sqrt(2)  # t(0.975, 1), deviation of +-ln 2
    assert interval.high == pytest.approx(math.exp(half), rel=1e-6)


def test_the_median_and_its_bootstrap() -> None:
    interval = median_interval([3.0, 1.0, 2.0])
    assert (interval.value, interval.low, interval.high) == (2.0, 1.0, 3.0)
    # The median of five draws is the lowest with probability 0.058.
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]).low == 1.0
    tail = median_interval([1.0, 2.0, 3.0, 4.0, math.inf])
    assert (tail.value, tail.high) == (3.0, math.inf)


def test_the_paired_t_test() -> None:
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with two degrees of freedom, p = 0.0742."""
    first, second = {1: 2.0, 2: 4.0, 3: 6.0}, {1: 1.0, 2: 2.0, 3: 3.0, 4: 9.0}
    t = 2 * math.sqrt(3)
    by_hand = 1 - t / math.sqrt(2 + t**2)  # two-sided p of Student's distribution with two degrees of freedom
    assert paired_p(first, second) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.0742, abs=1e-4)
    assert math.isnan(paired_p({1: 1.0}, second))
    assert paired_p({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}) == 1.0
    assert paired_p({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}) == 0.0
    assert paired_p({1: math.inf, 2: 3.0}, {1: 1.0, 2: 2.0}) == 0.0


def test_first_and_tied() -> None:
    close = {"a": {1: 1.0, 2: 2.0, 3: 3.0}, "b": {1: 1.2, 2: 1.9, 3: 3.2}, "c": {1: 2.0, 2: 3.0, 3: 4.01}}
    first, tied = first_and_tied({**close, "d": {1: math.inf, 2: 0.0, 3: 0.0}, "e": {}})
    assert (first, tied) == ("a", {"a", "b"})
    assert first_and_tied({"d": {1: math.inf}}) == (None, set())


def record(
    task: str, optimizer: str, seed: int, loss: float, seconds: float = 1.0, steps: int = 100
) -> RunRecord:
    """Return a run whose loss falls by a line from 10 to its last."""
    curve = [
        (step, seconds * step / steps, 10 + (loss - 10) * step / steps) for step in (0, steps // 2, steps)
    ]
    status = OK if math.isfinite(loss) else NOT_FINITE
    outcome = Outcome(loss, seconds, 0.1, 2**20, status, curve if status == OK else curve[:1])
    return RunRecord(ArenaRun(task, optimizer, 1e-3, 0.99, steps, seed), outcome, WHERE)


def made() -> list[RunRecord]:
    """Return runs of two tasks and three optimizers, with seed 0 as their search.

    KrADagrad's loss falls twice as fast as AdamW's, its steps take four times as long; Muon diverges on one
    task and has AdamW's losses on the other.
    """
    records = []
    for task in ("curves", "text"):
        for seed in range(4):
            noise = 0.01 * seed
            records += [
                record(task, "adamw", seed, 6 + noise),
                record(task, "kradagrad", seed, 2 + 2 * noise, seconds=4.0),
                record(task, "muon", seed, math.nan if task == "text" else 6 + noise),
            ]
    return records


def test_ratios_to_the_baseline() -> None:
    results = Results(made())
    # AdamW's median is 6.02; KrADagrad's seeds fall from 10 to 2.02, 2.04, 2.06 in 100 steps and 4 s.
    steps = ratio_to_baseline(results, "curves", "kradagrad", "adamw", STEPS)
    assert steps is not None
    assert steps.value == pytest.approx(3.98 / 7.96)
    assert steps.high == pytest.approx(3.98 / 7.94)
    seconds = ratio_to_baseline(results, "curves", "kradagrad", "adamw", SECONDS)
    assert seconds is not None
    assert seconds.value == pytest.approx(4 * 3.98 / 7.96)
    never = ratio_to_baseline(results, "text", "muon", "adamw", STEPS)
    assert never is not None
    assert never.value == math.inf
    assert ratio_to_baseline(results, "text", "sgd", "adamw", STEPS) is None
    assert ratio_to_baseline(results, "text", "adamw", "muon", STEPS) is None  # Muon's loss is not finite
    assert results.best_rival("curves", "kradagrad") == "adamw"


def test_seed_0_does_not_count() -> None:
    results = Results([record("curves", "adamw", 0, 0.0), *made()])
    assert list(results.losses("curves", "adamw")) == [1, 2, 3]
    assert Results([record("curves", "adamw", 0, 0.0)]).runs == {}


def test_tests_over_tasks() -> None:
    """Six wins of six, with different ratios: Wilcoxon 2 / 2^6, sign test 2 / 2^6."""
    records = [
        record(f"task {i}", name, 1, loss)
        for i in range(6)
        for name, loss in (("kradagrad", 1.0), ("adamw", 1.1 + i / 10), ("muon", math.nan))
    ]
    results = Results(records)
    against = over_tasks(results, "kradagrad", "adamw")
    assert (against.wins, against.losses) == (6, 0)
    assert against.wilcoxon == pytest.approx(2 / 2**6)
    assert against.sign == pytest.approx(2 / 2**6)
    assert over_tasks(results, "kradagrad", "muon").wins == 6
    assert math.isnan(over_tasks(results, "kradagrad", "kradagrad").sign)


def test_performance_profiles() -> None:
    ratios = {"a": [1.0, 4.0, math.inf], "b": [2.0, 2.0, 1.0]}
    assert profile(ratios, 1.0) == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert profile(ratios, 2.0) == {"a": pytest.approx(2 / 3), "b": 1.0}
    assert profile({"a": [math.inf]}, 4.0) == {"a": 0.0}


def test_the_report_of_a_small_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arena.csv"
    write(made(), path)
    assert command.main(["report", "--csv", str(path)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    cells = {
        title: {
            row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ")
            for row in section.splitlines()
        }
        for title, section in (part.split("\n\n", 1) for part in text.split("\n### ")[1:])
    }
    summary = cells["Summary"]
    # Both tasks have the ratio 0.5, and four seconds against one double it; Muon reaches one task of two.
    assert summary["KrADagrad"][1].startswith("0.5 (")
    assert summary["KrADagrad"][2].startswith("2 (")
    assert summary["KrADagrad"][3:6] == ["2 of 2", "2, 2", "0, 0"]
    assert summary["AdamW"][5] == "2, 2"
    assert summary["Muon"][3] == "1 of 2"
    assert summary["Muon"][6] == "2 : 0"
    losses = cells["Final losses at equal steps, mean and half of its interval"]
    assert losses["text"][1].startswith("6.02 ± ")
    assert losses["text"][2].startswith("**2.04 ± ")
    assert losses["text"][3] == "not finite"
    assert cells["Steps to AdamW's final loss, over AdamW's steps"]["text"][3].startswith("never")
    assert cells["KrADagrad against the best rival of each task"]["curves"][1] == "AdamW"
    assert cells["Paired tests of KrADagrad's losses: + where they are lower"]["curves"][1] == "+ < 0.001"
    assert sum(line.startswith("| text | Muon |") and NOT_FINITE in line for line in lines) == 4
    plots = {file.name: file.stat().st_size for file in tmp_path.glob("*.png")}
    assert plots.keys() == {"arena_steps.png", "arena_seconds.png", "arena_profiles.png"}
    assert min(plots.values()) > 10_000


def test_the_baseline_reaches_its_own_loss_in_its_csv(tmp_path: Path) -> None:
    path = tmp_path / "arena.csv"
    write([record("curves", "adamw", seed, 1 / (3 + seed) ** 0.5) for seed in range(6)], path)
    results = Results(Store(path).records)
    ratio = ratio_to_baseline(results, "curves", "adamw", "adamw", STEPS)
    assert ratio is not None
    assert ratio.value == 1.0


def test_a_report_where_the_baseline_is_at_the_start_or_not_finite() -> None:
    """A loss that all have before the first step counts as the least ratio, an infinite one not at all."""
    runs = [record("curves", name, seed, 12.0) for name in ("adamw", "kradagrad") for seed in range(3)]
    runs += [record("text", "adamw", seed, math.nan) for seed in range(3)]
    runs += [record("text", "kradagrad", seed, 1.0) for seed in range(3)]
    text = report.report(runs)
    assert "| KrADagrad | 0.01 | 0.01 | 1 of 1 |" in text


def test_a_report_of_the_search_alone_says_that_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "arena.csv"
    write([record("curves", "adamw", 0, 1.0)], path)
    assert report.report(Store(path).records) == report.NOTHING


def test_record_changes_the_page_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, path = tmp_path / "docs/arena.md", tmp_path / "arena.csv"
    page.parent.mkdir()
    begin, end = report.markers(report.RESULTS)
    page.write_text(f"before\n\n{begin}\n\nold\n\n{end}\n\nafter\n")
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    write(made(), path)
    before = page.read_text()
    command.main(["report", "--csv", str(path)])
    assert page.read_text() == before
    command.main(["report", "--csv", str(path), "--record"])
    changed = page.read_text()
    assert changed.startswith(f"before\n\n{begin}\n\n24 runs;")
    assert changed.endswith(f"\n\n{end}\n\nafter\n")
    assert "old" not in changed
    assert (tmp_path / "docs/images/arena_steps.png").exists()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must have '<!-- results -->' before"):
        report.insert("text", page, report.RESULTS)
    capsys.readouterr()


@pytest.mark.parametrize("part", [report.RESULTS, report.WIDTHS])
def test_the_page_has_its_markers(part: str) -> None:
    text = command.PAGE.read_text()
    begin, end = report.markers(part)
    assert 0 <= text.find(begin) < text.find(end)


def test_losses_by_width() -> None:
    """The best rate of a row is bold; a run that was not finite is never the best."""
    losses = {("adamw", 64, 1e-3): 2.5, ("adamw", 64, 3e-3): 2.25, ("adamw", 64, 1e-2): math.nan}
    losses |= {("kradagrad", 512, 3e-3): 2.125, ("kradagrad", 512, 1e-2): 1.5}
    runs = [
        RunRecord(
            ArenaRun(f"width {width}", name, lr, 0.0, 120, 0),
            Outcome(loss, 1.0, 0.1, 2**20, OK if math.isfinite(loss) else NOT_FINITE, []),
            WHERE,
        )
        for (name, width, lr), loss in losses.items()
    ]
    assert report.widths_report(runs).splitlines()[2:] == [
        "| AdamW | 64 | 2.5 | **2.25** |  |",
        "| KrADagrad | 512 |  | 2.125 | **1.5** |",
    ]
    assert report.widths_report([]) == report.NOTHING
