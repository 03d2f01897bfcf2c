"""Commands of bench/ that the docs name, at a small size: they run, and the claims of their figures hold."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow_after

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from bench import common, plot
from bench.experiments import quadratic
from bench.ops import roots_accuracy
from bench.steps import host_time
from bench.tuning import results, tune_defaults

ROOT = common.ROOT
PAGES = [ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "bench").rglob("*.md")]
COMMAND = re.compile(r"python -m (bench(?:\.\w+)*)")


def test_commands_of_the_pages_exist() -> None:
    """Every command of bench is in bench/README.md, and every command that a page names exists."""
    modules = list((ROOT / "bench").rglob("*.py"))
    named = {name for path in [*PAGES, *modules] for name in COMMAND.findall(path.read_text())}
    assert [name for name in named if importlib.util.find_spec(name) is None] == []
    mains = {path for path in modules if '__name__ == "__main__"' in path.read_text()}
    mains |= {path.parent for path in modules if path.name == "__main__.py"}
    commands = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in mains}
    commands.remove("bench.gpu.check.worker")  # only the check starts it
    assert commands == set(COMMAND.findall((ROOT / "bench/README.md").read_text()))


def test_only_record_changes_what_git_tracks(tmp_path: Path) -> None:
    tracked, written = common.benchmarks_csv(record=True), tmp_path / "benchmarks.csv"
    before = tracked.read_bytes()
    backend = common.usable_backends()[0]
    command = [sys.executable, "-m", "pytest", "bench/ops", "--benchmark-only", "-p", "no:cacheprovider"]
    # In a worker of pytest-xdist, pytest-benchmark turns itself off.
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(
        [*command, "-k", f"decomposed_roots and 64-{backend}"], cwd=ROOT, capture_output=True, text=True,
        env={**environment, "KRADAGRAD_BENCH_CSV": str(written)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    header, row = written.read_text().splitlines()
    assert header.startswith("op,backend,dtype")
    assert row.startswith(f"decomposed_roots,{backend},float32,64x64,64,ms,")
    assert tracked.read_bytes() == before
    assert ROOT / "bench/results" in tracked.parents


def test_other_results_are_in_the_build_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRADAGRAD_BENCH_CSV", raising=False)
    assert ROOT / "build" in common.benchmarks_csv(record=False).parents


def test_plots_of_the_recorded_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = str(common.benchmarks_csv(record=True))
    monkeypatch.setattr(sys, "argv", ["plot", "--csv", recorded, "--out", str(tmp_path)])
    plot.main()
    plots = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert plots.keys() == {f"{name}.png" for name in plot.PLOTS}
    assert min(plots.values()) > 10_000


@pytest.mark.parametrize("lr", slow_after(1, quadratic.RATES))
def test_float32_is_enough_for_the_papers_quadratic(lr: float) -> None:
    """KrADagrad in float32 ends with the loss of Shampoo in float64."""
    problem = quadratic.Quadratic.of_size(48)
    ends = {}
    for optimizer in (quadratic.OPTIMIZERS[0], quadratic.OPTIMIZERS[2]):
        *_, ends[optimizer.label] = quadratic.losses(problem, optimizer, lr)
    wanted = ends["Shampoo, float64"]
    assert abs(ends["KrADagrad, float32"] / wanted - 1) < 0.1


def test_quadratic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadratic, "STEPS", 6)
    quadratic.main(["--sizes", "12", "--rates", "1e-3", "2e-3", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| n | optimizer | lr 0.001 | lr 0.002 | other lr |"
    assert len(lines) == 2 + len(quadratic.OPTIMIZERS)
    assert (tmp_path / "quadratic.png").stat().st_size > 10_000
    rows = (tmp_path / "quadratic.csv").read_text().splitlines()
    runs = sum(len(optimizer.rates or (1, 2)) for optimizer in quadratic.OPTIMIZERS)
    assert len(rows) == 1 + 6 * runs


def test_tune_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every combination runs once; a second call runs none."""
    path = tmp_path / "tuning.csv"
    command = ["tune_defaults", "--csv", str(path), "--steps", "2", "--vary", "lr", "1e-2"]
    command += ["--vary", "graft", "adam", "rms"]
    monkeypatch.setattr(sys, "argv", command)
    tune_defaults.main()
    first = path.read_text()
    assert len(first.splitlines()) == 3
    tune_defaults.main()
    assert path.read_text() == first
    table = capsys.readouterr().out.splitlines()
    assert sum('"graft": "rms"' in line for line in table) == 2


def test_host_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every optimizer, and both kinds of KrADagrad's steps."""
    host_time.main(["--parameters", "10", "--steps", "10", "--block-size", "16"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    columns = "p20 | p50 | p80 | least | norms | copies | collectives | the host"
    assert header == f"| 10 parameters, ms a step | {columns} |"
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    sharded = ("1 rank", "of 2 ranks, replicas", "of 2 ranks, shards")
    ours = ("KrADagrad, local engine", *(f"KrADagrad, sharded engine, {ranks}" for ranks in sharded))
    assert names == [
        "AdamW(foreach=True)",
        *(f"{n}{kind}" for n in ours for kind in ("", ", steps with roots")),
    ]


def test_roots_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors have the size of the dtype's rounding at a condition number that occurs in training."""
    monkeypatch.setattr(roots_accuracy, "SIDE", 24)
    for method in roots_accuracy.METHODS:
        for arithmetic in roots_accuracy.ARITHMETICS:
            samples, refused = roots_accuracy.errors(1e3, 2, method, arithmetic)
            assert not refused
            bound = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 1e-2}[arithmetic.store]
            assert max(samples) < bound


@pytest.mark.parametrize("page", ["README.md", "docs/tuning.md"])
def test_pages_have_the_table_of_the_recorded_results(page: str) -> None:
    table = "\n".join(results.table(tune_defaults.stored(common.RECORDED / "results.csv")))
    assert table in (ROOT / page).read_text()


def test_the_table_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every optimizer trains on every task and seed; a second call runs none."""
    monkeypatch.setattr(results, "RATES", {"curves": {"adamw": 1e-3, "kradagrad": 1e-2}})
    monkeypatch.setattr(results, "NAMES", {"adamw": "AdamW", "kradagrad": "KrADagrad"})
    path = tmp_path / "results.csv"
    command = ["--csv", str(path), "--steps", "2", "--seeds", "0", "1"]
    results.main(command)
    first = path.read_text()
    assert len(first.splitlines()) == 5
    results.main(command)
    assert path.read_text() == first
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0] == "| | curves, 400 steps |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| AdamW", "| KrADagrad"]


def test_the_page_on_migration_has_the_rates_of_the_results() -> None:
    page = (ROOT / "docs/migration.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.split("| best learning rate")[1].splitlines()[2:6]]
    named = {row[0]: [float(cell) for cell in row[1:4]] for row in rows}
    expected = {name: [rates[key] for rates in results.RATES.values()] for key, name in results.NAMES.items()}
    assert named == expected
