"""The driver of bench/gpu_check.sh, with a stub for the worker."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.gpu.check import package, record, sections, specs
from bench.gpu.check.words import CRASH, FAIL, HANG, NOT_RUN, PASS, SKIP, WRONG

ROOT = package.ROOT
SCRIPT = ROOT / "bench/gpu_check.sh"
STUB = f"{sys.executable} {Path(__file__).with_name('stub_worker.py')}"
FILES = {record.CSV, record.LOG, record.SUMMARY, record.ARCHIVE}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, **more}


def check(out: Path, *options: str, status: int, **more: str) -> list[dict[str, str]]:
    """Run the driver with stub workers and return its rows."""
    command = ["bash", SCRIPT, "--out", out, "--worker", STUB, "--work", out / "../work", *options]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=120, env=environment(**more)
    )
    assert done.returncode == status, done.stdout + done.stderr
    return rows(out)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / record.CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def verdicts(results: list[dict[str, str]], section: str) -> dict[str, str]:
    ended = [row for row in results if row["section"] == section and row["metric"] == "verdict"]
    return {row["case"]: row["verdict"] for row in ended}


def test_each_fault_costs_one_case(tmp_path: Path) -> None:
    """After a crash, a hang and a wrong result among the cases of one process, all other cases pass."""
    first = next(iter(specs.NATIVE))
    options = (
        "--only",
        f"native/{first},native/made*",
        "--inject",
        "crash,hang,wrong",
        "--case-seconds",
        "2",
    )
    results = check(tmp_path / "out", *options, status=1)
    ended = verdicts(results, "native")
    bad = {case: verdict for case, verdict in ended.items() if verdict != PASS}
    assert bad == {"made to crash": CRASH, "made to hang": HANG, "made to wrong": WRONG}
    assert len(ended) == len(specs.NATIVE[first]) + 3
    notes = {row["case"]: row["note"] for row in results if row["metric"] == "verdict"}
    assert "SIGSEGV" in notes["made to crash"]
    summary = (tmp_path / "out" / record.SUMMARY).read_text()
    assert Counter(re.findall(r"^(CRASH|HANG|WRONG|FAIL) ", summary, re.MULTILINE)) == Counter(
        ["CRASH", "HANG", "WRONG"]
    )


def test_a_whole_run_leaves_few_files_and_every_row(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = check(out, status=0)
    assert {path.name for path in out.iterdir()} == FILES
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in out.iterdir())
    assert {row["device"] for row in results if row["section"] == "native"} == {"stub"}
    for section in ("ceilings", "native", "triton", "steps", "times", "gpt2"):
        assert set(verdicts(results, section).values()) == {PASS}, section
    for section in ("memcheck", "racecheck", "ncu"):
        assert verdicts(results, section) == {"all": SKIP}, section
    assert sorted(verdicts(results, "compile")) == ["0", "1", "2", "3"]
    assert "printed by" in (out / record.LOG).read_text()
    with tarfile.open(out / record.ARCHIVE) as archive:
        assert archive.getnames() == []


def test_a_backend_that_fails_costs_one_column(tmp_path: Path) -> None:
    case = specs.TIMES[0].name
    results = check(tmp_path / "out", "--only", f"times/{case}/*", status=1, STUB_FAILS="triton")
    ended = {case.rpartition("/")[2]: verdict for case, verdict in verdicts(results, "times").items()}
    assert ended == {name: FAIL if name == "triton" else PASS for name in specs.columns("kron_step_")}


def test_no_case_begins_after_the_deadline(tmp_path: Path) -> None:
    start = time.monotonic()
    options = ("--only", "ceilings,native/update_moments*", "--deadline", "21")
    results = check(tmp_path / "out", *options, status=1, STUB_SECONDS="1.5")
    assert time.monotonic() - start < 25
    assert NOT_RUN in {**verdicts(results, "ceilings"), **verdicts(results, "native")}.values()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_worker_that_does_not_start_is_reported(tmp_path: Path) -> None:
    results = check(tmp_path / "out", status=2, STUB_DOES_NOT_START="1")
    assert verdicts(results, "machine") == {"facts": CRASH}
    assert "no torch" in (tmp_path / "out" / record.SUMMARY).read_text()


def test_rows_and_lines_are_written_before_the_run_ends(tmp_path: Path) -> None:
    """After SIGTERM the other files are written too, and no worker survives."""
    out = tmp_path / "out"
    command = [
        "bash",
        SCRIPT,
        "--out",
        out,
        "--worker",
        STUB,
        "--work",
        tmp_path / "work",
        "--only",
        "native/update_moments*",
    ]
    with subprocess.Popen(
        [*map(str, command)], env=environment(STUB_SECONDS="1"), stdout=subprocess.DEVNULL
    ) as driver:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (
            (out / record.CSV).exists() and verdicts(rows(out), "native")
        ):
            time.sleep(0.05)
        assert driver.poll() is None
        assert "printed by" in (out / record.LOG).read_text()
        assert "native" in (out / record.SUMMARY).read_text()
        pids = {int(pid) for pid in re.findall(r"printed by (\d+)", (out / record.LOG).read_text())}
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(30) == 128 + signal.SIGTERM
    assert {path.name for path in out.iterdir()} == FILES
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return [line for line in found if str(folder) in line]


def test_without_a_device_nothing_is_run(tmp_path: Path) -> None:
    """A build of the library, which begins where there is nvcc, ends with the check."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = ["bash", SCRIPT, "--out", tmp_path / "out", "--work", tmp_path / "work", "--only", "ceilings"]
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(TMPDIR=str(tmp_path / "temporary")),
    )
    until = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []
    assert done.returncode == 2
    assert "FAIL machine/facts" in done.stdout
    assert verdicts(rows(tmp_path / "out"), "ceilings") == {}


def test_names_of_cases() -> None:
    listed = list(sections.names(sections.Context()))
    assert len(listed) == len(set(listed))
    assert all(re.fullmatch(r"[\w./+ -]+", name) for name in listed)
    only = sections.Context(only=("steps/native/*", "ceilings"))
    assert {name.split("/")[0] for name in sections.names(only)} == {"steps", "ceilings"}
    assert len(list(sections.names(only))) == len(sections.STEP_MODES) + 4
