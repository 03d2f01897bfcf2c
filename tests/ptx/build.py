"""Compiles the executor on first use, into build/ptx/ of the repository."""

import concurrent.futures
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pybind11

SOURCES = Path(__file__).parent / "executor"
BUILD = Path(__file__).resolve().parents[2] / "build" / "ptx"
JOBS = 2
# Fused or reassociated arithmetic would change the values; overflow wraps, as it does on the device.
FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fwrapv", "-fPIC", "-fvisibility=hidden"]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return "".join(re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.MULTILINE)[:2])


def _key(sources: list[Path], headers: list[Path], compiler: str) -> str:
    digest = hashlib.sha256()
    for part in (sys.version, pybind11.__version__, compiler, _processor(), " ".join(FLAGS)):
        digest.update(part.encode())
    for path in sorted(sources + headers):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _compile(sources: list[Path], compiler: str, directory: Path) -> Path:
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    objects = [directory / f"{source.stem}.o" for source in sources]
    commands = [
        [compiler, *FLAGS, *includes, "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(_run, commands))
    library = directory / "_executor.so"
    _run([compiler, "-shared", *map(str, objects), "-o", str(library)])
    return library


def library() -> Path:
    """The compiled module; processes that build it at the same time each install a whole file."""
    # bindings.cpp takes longest, so it starts first.
    sources = sorted(SOURCES.glob("*.cpp"), key=lambda path: (path.name != "bindings.cpp", path.name))
    compiler = os.environ.get("CXX", "c++")
    target = BUILD / _key(sources, list(SOURCES.glob("*.h")), compiler) / "_executor.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            _compile(sources, compiler, Path(directory)).replace(target)
    return target


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_executor", library())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
