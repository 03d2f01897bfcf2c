"""Kernels compiled by nvcc and by Triton: values, reports, traffic, and detection of single faults."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from ptx_executor import ExecutionError, Kernel, Launch, Memory, StepLimit

from .oracle import from_bfloat, to_bfloat

DATA = Path(__file__).parent / "data"
TEXT = (DATA / "rank_k.ptx").read_text()
TRITON = (DATA / "matmul_triton.ptx").read_text()


def run(text: str = TEXT, n: int = 100, k: int = 72, **options) -> tuple[bool, Launch, np.ndarray]:
    """Return True if the values are right, the launch, and C.  The columns of A past k are NaN."""
    kernel, memory = Kernel(text), Memory()
    a = np.full((n, k + 16), 0x7FC0, np.uint16)
    a[:, :k] = to_bfloat(np.random.default_rng(n + k).standard_normal((n, k)))
    c, trace = np.full((n, n), np.nan, np.float32), np.zeros(1, np.float32)
    places = [
        memory.place(a, "a", writable=False),
        memory.place(c, "c", uninitialised=True),
        memory.place(trace, "trace"),
    ]
    blocks = -(-n // 64)
    data = struct.pack("<QQQiiif", *places, n, k, k + 16, 0.5)
    launch = kernel.launch(memory, (blocks, blocks), 128, [data], **options)
    exact = 0.5 * from_bfloat(a[:, :k]).astype(float) @ from_bfloat(a[:, :k]).astype(float).T
    close = np.allclose(c, exact, rtol=1e-5, atol=1e-4) and abs(trace[0] - np.trace(exact)) < 1e-3 * n
    return close, launch, c


@pytest.mark.parametrize(("n", "k"), [(64, 32), (100, 72), (33, 8), (129, 104), (200, 200), (1, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_checks(n, k, seed):
    close, launch, _ = run(n=n, k=k, seed=seed)
    launch.assert_clean()
    assert close


def test_the_result_does_not_depend_on_the_order():
    results = [run(seed=seed)[2] for seed in (0, 1, 2)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_counters():
    _, launch, _ = run(n=128, k=64)
    counters = launch.counters
    blocks, steps = 3, 2
    assert counters.mma == blocks * 4 * steps * 2 * 8
    assert counters.block_barriers == blocks * steps * 2
    assert counters.footprint_write_bytes == 128 * 128 * 4 + 32
    assert counters.footprint_read_bytes == 128 * 64 * 2 + 32  # A, and the trace's sector
    loads = [line for line in counters.by_line if line["opcode"].startswith("ldmatrix")]
    assert sum(line["n"] for line in loads) == blocks * 4 * steps * 2 * 4
    assert {line["source_file"] for line in loads} == {"rank_k.cu"}
    # Rows of 80 bytes spread the eight of a matrix over all banks; the copies write two rows at once and
    # collide.
    assert all(line["wavefronts"] == line["ideal"] == 4 * line["n"] for line in loads)
    copies = [line for line in counters.by_line if line["opcode"].startswith("cp.async")]
    assert all(line["wavefronts"] == 2 * line["ideal"] == 8 * line["n"] for line in copies)


def test_reports_carry_the_source_line():
    _, launch, _ = run(TEXT.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;"))
    (report, *_) = launch.reports
    assert (report.kind, report.source_file) == ("shared read of in-flight cp.async data", "rank_k.cu")
    source = (DATA / "rank_k.cu").read_text().splitlines()
    statement = source[report.source_line - 4 : report.source_line]
    assert any("ldmatrix" in line for line in statement)


def edits() -> list[str]:
    """Return the text with one of these edits in one line, for every edit and line that match."""
    patterns = {
        r"^\s*bar\.sync.*$": "",
        r"^\s*cp\.async\.(wait|commit)_group.*$": "",
        r"wait_group 1": "wait_group 2",
        r"ldmatrix\.sync\.aligned\.m8n8\.x4": "ldmatrix.sync.aligned.m8n8.x4.trans",
        r"^\s*mma\.sync.*$": "",
        r"(ld|st)(\.shared|\.global)(\S*)(\s[^\[]*)\[(%\w+)\]": r"\1\2\3\4[\5+16]",
        r"st\.global\.f32.*$": "",
        r"shfl\.sync\.bfly": "shfl.sync.up",
    }
    lines, texts = TEXT.split("\n"), []
    for pattern, replacement in patterns.items():
        for i, line in enumerate(lines):
            new = re.sub(pattern, replacement, line)
            if new != line and not line.strip().startswith("//"):
                texts.append("\n".join([*lines[:i], new, *lines[i + 1 :]]))
    return texts


def test_single_faults_are_noticed():
    noticed, missed = 0, []
    for edited in edits():
        try:
            close, launch, _ = run(edited, step_limit=100_000)
            seen = not close or bool(launch.reports)
        except (ExecutionError, StepLimit, ValueError):
            seen = True
        noticed += seen
        if not seen:
            missed.append(
                next(new for new, old in zip(edited.split("\n"), TEXT.split("\n"), strict=True) if new != old)
            )
    assert noticed > 100
    assert missed == []


def run_triton(m: int, n: int, k: int, text: str = TRITON) -> tuple[bool, Launch]:
    kernel, memory = Kernel(text), Memory()
    rng = np.random.default_rng(m + n + k)
    a, b = (to_bfloat(rng.standard_normal(shape)) for shape in ((m, k), (k, n)))
    c = np.full((m, n), np.nan, np.float32)
    places = [memory.place(x, name, writable=x is c) for x, name in ((a, "a"), (b, "b"), (c, "c"))]
    # Two scratch pointers follow the arguments.
    shared = int(re.search(r"(\d+) bytes of dynamic shared memory", text)[1])
    values = [*places, m, n, k, 0, 0]
    launch = kernel.launch(memory, (-(-m // 64), -(-n // 64)), 128, values, dynamic_shared=shared)
    exact = from_bfloat(a).astype(float) @ from_bfloat(b).astype(float)
    return np.allclose(c, exact, rtol=1e-5, atol=1e-4), launch


@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 32), (112, 80, 96), (128, 192, 160)])
def test_triton_for_sm_90(m, n, k):
    close, launch = run_triton(m, n, k)
    launch.assert_clean()
    assert close
    blocks = -(-m // 64) * -(-n // 64)
    assert launch.counters.mma == blocks * -(-k // 32) * 2 * 4
    assert launch.counters.shared_wavefronts == launch.counters.shared_ideal_wavefronts


@pytest.mark.parametrize(
    "opcode", ["bar.sync", "wgmma.fence", "wgmma.wait_group", "wgmma.commit_group", "cp.async.wait_group"]
)
def test_triton_without_one_instruction(opcode):
    lines = TRITON.split("\n")
    places = [i for i, line in enumerate(lines) if line.strip().startswith(opcode)]
    assert places
    for i in places:
        close, launch = run_triton(112, 80, 160, "\n".join([*lines[:i], "", *lines[i + 1 :]]))
        assert not close or launch.reports, lines[i]
