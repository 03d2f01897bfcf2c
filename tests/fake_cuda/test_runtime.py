"""The fake runtime: what it refuses and what it records, tested through its C interface.

Each test runs in a separate process, as the library must be the only libcuda of the process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import build

try:
    build.cuda_headers()
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def test_every_kernel_has_a_stub() -> None:
    """Without one the library of the package does not load, which only a CUDA build of torch would show."""
    defined = set()
    for source in (build.ROOT / "csrc/cuda/kernels").glob("*.cu"):
        text = source.read_text()
        defined.update(re.findall(r"__launch_bounds__\([^)]*\)\s+(\w+)\(", text))
        for side, precision in re.findall(r"^KRADAGRAD_KERNEL\((\d+), \d+, (\w+),", text, re.MULTILINE):
            defined.add(f"{source.stem}_{side}_{precision}")
    assert sorted(build.kernel_names()) == sorted(defined)


PREAMBLE = """
import ctypes, sys
cuda = ctypes.CDLL(sys.argv[1])
SIZE, POINTER = ctypes.c_size_t, ctypes.c_void_p
GLOBAL, RELAXED = 0, 2
TO_DEVICE, TO_HOST = 1, 2

class Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

class Handle(POINTER):
    pass

host = (ctypes.c_char * 4096)()
kernel = ctypes.byref(host)  # any address of the host stands for a kernel
cuda.__cudaRegisterFunction(None, kernel, None, b"a_kernel", -1, None, None, None, None, None)

def launch(grid=(1, 1, 1), block=(32, 1, 1), shared=0, stream=None):
    return cuda.cudaLaunchKernel(kernel, Dim3(*grid), Dim3(*block), None, SIZE(shared), stream)

def ask_for_shared(size):
    return cuda.cudaFuncSetAttribute(kernel, 8, size)

def made(function, *arguments):
    handle = POINTER()
    assert getattr(cuda, function)(ctypes.byref(handle), *arguments) == 0
    return handle

def stream():
    return made("cudaStreamCreateWithPriority", 1, 0)

def event():
    return made("cudaEventCreateWithFlags", 2)

def memory(size=4096):
    return made("cudaMalloc", SIZE(size))

def copy(to, source, size, kind, stream):
    return cuda.cudaMemcpyAsync(to, source, SIZE(size), kind, stream)

def end(stream):
    graph = POINTER()
    return cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)), graph
"""


@pytest.fixture(scope="session")
def library() -> Path:
    return build.runtime() / "libcuda.so.1"


@pytest.fixture
def run(library: Path, tmp_path: Path):
    """Return a function that runs a snippet and returns the words that it prints, and the log."""

    def run(snippet: str) -> tuple[list[str], list[dict[str, Any]]]:
        log = tmp_path / "log"
        variables = {"FAKE_CUDA_LOG": str(log), "FAKE_CUDA_DEVICES": "2"}
        command = [sys.executable, "-c", PREAMBLE + snippet, str(library)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), [json.loads(line) for line in log.read_text().splitlines()]

    return run


def refusals(events: list[dict[str, Any]]) -> list[str]:
    return [event["why"] for event in events if event["event"] == "refused"]


def test_a_launch_is_recorded(run) -> None:
    printed, events = run("ask_for_shared(90000); print(launch((3, 2, 1), (64, 4, 1), 90000, stream()))")
    assert printed == ["0"]
    assert {key: value for key, value in events[-1].items() if key != "pid"} == {
        "event": "launch", "name": "a_kernel", "grid": [3, 2, 1], "block": [64, 4, 1], "shared": 90000,
        "stream": 1, "device": 0, "captured": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("(0, 1, 1)", "a grid of 0,1,1 blocks"),
        ("(1, 65536, 1)", "a grid of 1,65536,1 blocks"),
        ("(2**31, 1, 1)", "a grid of 2147483648,1,1 blocks"),
        ("block=(1025, 1, 1)", "a block of 1025,1,1 threads"),
        ("block=(64, 32, 1)", "a block of 64,32,1 threads"),
        ("block=(0, 1, 1)", "a block of 0,1,1 threads"),
        ("shared=49153", "49153 bytes of dynamic shared memory, of which 49152"),
    ],
)
def test_wrong_launches_are_refused(run, arguments: str, why: str) -> None:
    printed, events = run(f"print(launch({arguments}) != 0, launch())")
    assert printed == ["True", "0"]
    assert [why in refusal for refusal in refusals(events)] == [True]
    assert sum(event["event"] == "launch" for event in events) == 1


def test_shared_memory_is_asked_for_on_every_device(run) -> None:
    printed, events = run("""
print(ask_for_shared(65536), launch(shared=65536), ask_for_shared(1 << 20) != 0)
cuda.cudaSetDevice(1)
print(launch(shared=65536) != 0, ask_for_shared(65536), launch(shared=65536))
""")
    assert printed == ["0", "0", "True", "True", "0", "0"]
    assert len(refusals(events)) == 2


def test_a_stream_of_another_device_is_refused(run) -> None:
    printed, events = run("""
main, mark = stream(), event()
cuda.cudaSetDevice(1)
print(launch(stream=main), cuda.cudaEventRecord(mark, None), cuda.cudaEventRecord(mark, main))
""")
    assert printed == ["400", "400", "0"]
    assert "device 1 is current, the stream is of device 0" in refusals(events)[0]


def test_waits_are_counted(run) -> None:
    _, events = run("""
main, mark, device = stream(), event(), memory()
cuda.cudaEventRecord(mark, main); cuda.cudaEventQuery(mark); cuda.cudaStreamWaitEvent(main, mark, 0)
copy(device, host, 8, TO_DEVICE, main)
cuda.cudaStreamSynchronize(main); cuda.cudaEventSynchronize(mark); cuda.cudaDeviceSynchronize()
cuda.cudaMemcpy(device, host, SIZE(8), TO_DEVICE)
copy(host, device, 8, TO_HOST, main)
""")
    calls = [event["call"] for event in events if event["event"] == "sync"]
    assert calls == [
        "cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy",
        "cudaMemcpyAsync",
    ]  # fmt: skip


def test_copies_are_real_and_stay_in_their_memory(run) -> None:
    printed, events = run("""
device, main = memory(64), stream()
host[0:5] = b"bytes"
copy(device, host, 5, TO_DEVICE, main)
host[0:5] = b"other"
copy(host, device, 5, TO_HOST, main)
print(host[0:5].decode(), copy(device, host, 65, TO_DEVICE, main), copy(host, device, 5, TO_DEVICE, main))
""")
    assert printed == ["bytes", "1", "1"]
    assert [why.partition(":")[2] for why in refusals(events)] == [
        " they do not fit",
        " no memory of a device",
    ]


def test_a_graph_holds_what_was_captured(run) -> None:
    printed, events = run("""
main, device, pinned = stream(), memory(), made("cudaHostAlloc", SIZE(64), 0)
values = ctypes.cast(pinned, ctypes.POINTER(ctypes.c_int))
cuda.cudaStreamBeginCapture(main, GLOBAL)
launch(stream=main); copy(device, pinned, 4, TO_DEVICE, main)
status, graph = end(main)
values[0] = 7
executable = made("cudaGraphInstantiateWithFlags", graph, 0)
print(status, cuda.cudaGraphLaunch(executable, main))
values[0] = 0
copy(pinned, device, 4, TO_HOST, main)
print(values[0])
""")
    assert printed == ["0", "0", "7"]
    assert [(event["event"], event.get("nodes")) for event in events if "nodes" in event] == [
        ("captured", 2), ("instantiate", 2), ("graph", 2)
    ]  # fmt: skip
    assert refusals(events) == []


@pytest.mark.parametrize(
    "call",
    [
        "cuda.cudaStreamSynchronize(main)",
        "cuda.cudaDeviceSynchronize()",
        "cuda.cudaEventSynchronize(mark)",
        "cuda.cudaEventQuery(mark)",
        "cuda.cudaMalloc(ctypes.byref(POINTER()), SIZE(8))",
        "cuda.cudaHostAlloc(ctypes.byref(POINTER()), SIZE(8), 0)",
        "cuda.cudaFree(device)",
        "cuda.cudaMemcpy(device, host, SIZE(8), TO_DEVICE)",
        "copy(device, host, 8, TO_DEVICE, main)",
        "copy(host, device, 8, TO_HOST, main)",
        "launch(stream=None)",
        "cuda.cuModuleLoadData(ctypes.byref(POINTER()), b'')",
    ],
)
def test_what_a_capture_forbids_ends_it(run, call: str) -> None:
    printed, events = run(f"""
main, mark, device = stream(), event(), memory()
cuda.cudaStreamBeginCapture(main, GLOBAL)
print({call} != 0, launch(stream=main), end(main)[0], {call}, launch(stream=main))
""")
    assert printed == ["True", "901", "901", "0", "0"]
    assert len(refusals(events)) == 3


def test_a_relaxed_thread_may_allocate_in_a_capture(run) -> None:
    printed, events = run("""
main, mode = stream(), ctypes.c_int(RELAXED)
cuda.cudaStreamBeginCapture(main, GLOBAL)
cuda.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
memory()
cuda.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
print(mode.value, end(main)[0])
""")
    assert printed == ["2", "0"]
    assert refusals(events) == []


@pytest.mark.parametrize(("joined", "status"), [(True, "0"), (False, "904")])
def test_streams_of_a_capture_are_joined(run, joined: bool, status: str) -> None:
    printed, _ = run(f"""
main, side, begun, done = stream(), stream(), event(), event()
cuda.cudaStreamBeginCapture(main, GLOBAL)
cuda.cudaEventRecord(begun, main); cuda.cudaStreamWaitEvent(side, begun, 0)
launch(stream=side)
cuda.cudaEventRecord(done, side)
if {joined}: cuda.cudaStreamWaitEvent(main, done, 0)
print(end(main)[0])
""")
    assert printed == [status]


def test_a_capture_does_not_wait_for_what_is_outside(run) -> None:
    printed, events = run("""
main, other, mark = stream(), stream(), event()
cuda.cudaEventRecord(mark, other)
cuda.cudaStreamBeginCapture(main, GLOBAL)
print(cuda.cudaStreamWaitEvent(main, mark, 0))
""")
    assert printed == ["905"]
    assert refusals(events) == ["for what is not captured"]
