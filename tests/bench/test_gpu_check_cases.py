"""The worker and the reports of bench/gpu/check, on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import inputs
import pytest
import torch

from bench.gpu.check import correctness, package, record, report, specs, tables, tools
from bench.gpu.check.cases import DeviceCase
from bench.gpu.check.specs import CaseSpec
from bench.gpu.check.words import CRASH, FAIL, PASS, WRONG

ROOT = package.ROOT


def test_every_cuda_kernel_has_a_task() -> None:
    text = "".join(path.read_text() for path in (ROOT / "csrc/cuda/kernels").glob("*.cu"))
    named = set(re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", text))
    families = {re.sub(r"_\d+_\w+$", "", name) for name in specs.NATIVE}
    launched = {name for name in named if "##" not in name}
    families_of_sides = {f"resident_{what}" for what in ("update", "precondition", "root")}
    assert families == launched | {"square_root_product"} | families_of_sides
    assert specs.NATIVE.keys() == inputs.kernels().keys()


def planned(spec: CaseSpec) -> set[str]:
    """Return the kernels of the roofline's launches, which test_roofline.py compares with the plans."""
    return {cost.kernel for cost in DeviceCase(spec, torch.device("cpu")).costs()}


STEPS = [name for name in specs.NATIVE if re.search(r"(te|on|ct)_\d+_|^wide_(up|pre)", name)]


@pytest.mark.parametrize("kernel", STEPS)
def test_cases_launch_the_kernel_that_they_test(kernel: str) -> None:
    assert all(kernel in planned(spec) for spec in specs.NATIVE[kernel])


UPDATE_MOMENTS, APPLY_UPDATES = specs.UPDATE_MOMENTS[1], specs.APPLY_UPDATES[1]
STEP, UPDATE = specs.NATIVE["resident_update_64_fp32"][1], specs.UPDATES[1]
ALL = (STEP, UPDATE_MOMENTS, APPLY_UPDATES, UPDATE)
FAULTS = [
    *((spec, fault) for spec in ALL for fault in (None, "value", "inactive", "second")),
    *((spec, "padding") for spec in (STEP, UPDATE_MOMENTS, APPLY_UPDATES)),
    *((spec, "unwritten") for spec in (STEP, UPDATE_MOMENTS)),
]


@pytest.mark.parametrize(("spec", "fault"), FAULTS, ids=lambda value: getattr(value, "op", str(value)))
def test_correctness_notices(spec: CaseSpec, fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports each fault in a result, and no fault in a correct one."""
    real, runs = correctness._run, []

    def run(
        case: DeviceCase, backend: str, dtype: torch.dtype = torch.float32, fill: int | None = None
    ) -> DeviceCase:
        result = real(case, backend, dtype, fill)
        if fill is not None:
            runs.append(fill)
            if fault is not None and (fault != "second" or len(runs) == 2):
                spoil(result, case, fault)
        return result

    monkeypatch.setattr(correctness, "_run", run)
    lines: list[str] = []
    wrong = correctness.check(DeviceCase(spec, torch.device("cpu"), 7), "reference", Lines(lines))
    assert bool(wrong) == (fault is not None), wrong
    assert any("error of" in line for line in lines)


class Lines(correctness.Report):
    """A report that keeps its lines."""

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.fields, self.judged = lines, {}, True

    def send(self, **message: object) -> None:
        self.lines.append(json.dumps(message))


def spoil(result: DeviceCase, before: DeviceCase, fault: str) -> None:
    """Put a fault into what the op wrote."""
    name, tensors = next((name, tensors) for name, tensors in result.written().items() if tensors)
    mask = result.masks(name)[0]
    if fault in ("value", "second"):
        blocks = tensors[0] if result.spec.factored else tensors[0][None]
        blocks[int(mask.nonzero()[0])].mul_(1.01)
    elif fault == "inactive":
        inactive = int((~mask).nonzero()[0]) if result.spec.factored else 1
        (tensors[0] if result.spec.factored else tensors)[inactive].add_(1)
    elif fault == "padding":
        view = next(t for views in result.written().values() for t in views if not t.is_contiguous())
        correctness.whole(view)[view.shape[-1] if view.stride(-1) == 1 else -1] = 1.0
    else:
        name = {"kron_step_": "norms", "update_moments_": "graft_norms"}[result.spec.op]
        result.arguments[name].copy_(before.arguments[name])


def test_the_bundle_fits_only_its_sources(tmp_path: Path) -> None:
    root, bundle = tmp_path / "root", tmp_path / "bundle"
    (root / "csrc").mkdir(parents=True)
    for name in package.BUILD_FILES:
        (root / name).write_text("x")
    bundle.mkdir()
    with pytest.raises(package.PackageError, match="no bundle"):
        package.check(bundle, root)
    (bundle / package.LIBRARY).write_bytes(b"library")
    manifest = {
        "digest": package.digest(root),
        "git_sha": "abc",
        "library": package._file_digest(bundle / package.LIBRARY),
    }
    (bundle / package.MANIFEST).write_text(json.dumps(manifest))
    assert package.check(bundle, root)["git_sha"] == "abc"
    (root / "csrc/new.cu").write_text("kernel")
    with pytest.raises(package.PackageError, match="other sources"):
        package.check(bundle, root)
    (bundle / package.LIBRARY).write_bytes(b"damaged")
    with pytest.raises(package.PackageError, match="damaged"):
        package.check(bundle, root)


def test_a_laid_out_package_is_complete(tmp_path: Path) -> None:
    package.lay_out(tmp_path)
    assert package.loads(sys.executable, tmp_path, dict(os.environ)) not in (None, "")
    code = "import kradagrad_ext, kradagrad_ext.cost; print(kradagrad_ext.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path))
    assert (tmp_path / "kradagrad_ext/triton_kernels/plan/tuning.csv").exists()


MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at update_moments+0x120
========= ERROR SUMMARY: 2 errors
"""
PROFILE = """\
==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","kron","GPU Speed Of Light Throughput","Duration","us","1,234.5"
"0","7","kron","Occupancy","Achieved Occupancy","%","12.5"
"""


def test_tools_are_read(tmp_path: Path) -> None:
    kept = record.Record(tmp_path / "out", tmp_path / "details")
    for name, text in (
        ("bad", MEMCHECK),
        ("good", "= RACECHECK SUMMARY: 0 hazards displayed\n"),
        ("none", ""),
    ):
        (tmp_path / name).write_text(text)
        tools.read_sanitizer("memcheck", name, tmp_path / name, kept)
    (tmp_path / "profile").write_text(PROFILE)
    tools.read_profile("native", "kron", tmp_path / "profile", kept)
    tools.read_profile("native", "other", tmp_path / "missing", kept)
    ended = {case: (verdict, text) for _, case, verdict, text in kept.verdicts}
    assert ended["bad/report"] == (WRONG, "2 found, the first: Invalid __global__ write of size 4 bytes")
    assert [ended[f"{name}/report"][0] for name in ("good", "none")] == [PASS, FAIL]
    assert ended["native/other/report"][0] == FAIL
    assert [row["p50"] for row in kept.rows if row["section"] == "ncu" and row["metric"] != "verdict"] == [
        1234.5,
        12.5,
    ]
    kept.close()


def test_log_and_archive_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_LOG", 1000)
    monkeypatch.setattr(record, "MOST_ARCHIVED", 1000)
    kept = record.Record(tmp_path / "out", tmp_path / "details")
    for number in range(100):
        kept.log(f"line {number} {'x' * 50}")
    for size in (10, 600, 900):
        (tmp_path / f"details/{size}.txt").write_bytes(b"x" * size)
    kept.archive()
    kept.close()
    assert (tmp_path / "out" / record.LOG).stat().st_size < 1200
    with tarfile.open(tmp_path / "out" / record.ARCHIVE) as archive:
        assert archive.getnames() == ["10.txt", "600.txt"]


def test_the_page_is_made_from_the_committed_results() -> None:
    assert report.PAGE.read_text() == report.page(report.measured()), (
        "run python -m bench.gpu.check.report --record"
    )


def test_a_page_of_a_run(tmp_path: Path) -> None:
    """The page has tables of times and errors, and a list of failures."""
    kept = record.Record(tmp_path, tmp_path / "details")
    kept.facts({"device": "Card", "torch": "2"})
    default = specs.TIMES[0]
    for column, spent in (("native", 0.5), ("roofline", 0.4), ("torch.bmm fp32", 1.5)):
        row = {"op": default.op, "recipe": default.recipe, "dtype": "float32", "shape": default.size}
        kept.row("times", f"{default.name}/{column}", row | {"backend": column, "metric": "ms", "p50": spent})
    error = {"backend": "native", "metric": "error of out", "p50": 2e-5, "bound": 1e-3}
    kept.row("native", "update_moments/x", error)
    kept.verdict("native", "update_moments/x", CRASH, "signal SIGSEGV")
    kept.close()
    text = report.page([tmp_path / record.CSV])
    assert "## Card" in text
    assert "| 128x128 | 0.5 | 0.4 | 1.5 |" in text
    assert "| native | update_moments | 2.0e-05 |" in text
    assert "- CRASH native/update_moments/x: signal SIGSEGV" in text
    assert [table.title for table in tables.tables(tables.words(kept.rows))] == [
        table.title for table in tables.tables(tables.read(tmp_path / record.CSV))
    ]
