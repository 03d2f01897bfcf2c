"""Builds the fake runtime, and the package with a native library that takes CUDA from whoever has it.

The package's own library holds CUDA's runtime, whose calls no preloaded library sees. Here the same host code
is linked without it. The kernels themselves are not compiled, as none is run: a function of each name stands
for it, as nvcc's stub does. Objects lie in build/fake-cuda, named by what they depend on.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build/fake-cuda"
CSRC = ROOT / "csrc"
RUNTIME_FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Wextra"]
HOST_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA"]


def runtime() -> Path:
    """The folder of libcuda.so.1, which is the fake runtime and the fake driver."""
    sources, headers = sorted(HERE.glob("runtime/*.cpp")), sorted(HERE.glob("runtime/*.h"))
    with _alone():
        objects = _compile_all(sources, headers, RUNTIME_FLAGS, [cuda_headers()])
        folder = BUILD / f"runtime-{_digest(objects)}"
        if not folder.exists():
            partial = _new_folder(BUILD / "runtime-partial")
            _link(objects, partial / "libcuda.so.1", ["-Wl,-z,defs", "-Wl,-soname,libcuda.so.1", "-ldl"])
            (partial / "libcuda.so").symlink_to("libcuda.so.1")
            partial.replace(folder)
    return folder


def package() -> Path:
    """A folder to import kradagrad_ext from: the tree's own, by links, with the library above."""
    flags = [*HOST_FLAGS, _torch_target()]
    sources, headers = sorted(CSRC.rglob("*.cpp")), sorted(CSRC.rglob("*.h"))
    names = sorted(path.name for path in (ROOT / "kradagrad_ext").iterdir())
    with _alone():
        objects = _compile_all(
            [*sources, _kernel_stubs()], headers, flags, [_torch() / "include", cuda_headers()]
        )
        folder = BUILD / f"package-{_digest(objects, *names)}"
        if not folder.exists():
            partial = _new_folder(BUILD / "package-partial")
            _fill(partial, objects)
            partial.replace(folder)
    return folder


@functools.cache
def cuda_headers() -> Path:
    """The folder of cuda.h and cuda_runtime_api.h: those that come with Triton, or a toolkit's."""
    triton = importlib.util.find_spec("triton")
    roots = triton.submodule_search_locations if triton else ()
    places = [Path(root) / "backends/nvidia/include" for root in roots or ()]
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    places += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    for place in places:
        # A step of torch asks for streams' captures as CUDA 13 has them.
        text = place / "cuda_runtime_api.h"
        if text.exists() and re.search(r"define CUDART_VERSION\s+13", text.read_text()):
            return place
    raise FileNotFoundError("CUDA 13's headers come with Triton or with a toolkit; neither has them here")


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time compiles."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile_all(
    sources: list[Path], headers: list[Path], flags: list[str], system: list[Path]
) -> list[Path]:
    """Objects of all sources; one is compiled where it, a header or a flag is new."""
    (BUILD / "objects").mkdir(exist_ok=True)
    versions = [
        path
        for folder in system
        for path in (folder / "cuda.h", folder / "torch/csrc/api/include/torch/version.h")
    ]
    known = _digest([*headers, *(path for path in versions if path.exists())], _compiler(), *flags)
    command = [_compiler(), *flags, *(part for folder in system for part in ("-isystem", str(folder)))]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: _compile(source, known, command), sources))


def _compile(source: Path, known: str, command: list[str]) -> Path:
    target = BUILD / "objects" / f"{source.stem}-{_digest([source], known)}.o"
    if not target.exists():
        partial = target.with_suffix(".partial.o")
        _run([*command, "-c", str(source), "-o", str(partial)])
        partial.replace(target)
    return target


def _link(objects: list[Path], library: Path, flags: list[str]) -> None:
    _run([_compiler(), "-shared", *map(str, objects), "-o", str(library), *flags])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _digest(files: list[Path], *facts: str) -> str:
    state = hashlib.sha256(" ".join(facts).encode())
    for path in files:
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()[:16]


def _new_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def _torch() -> Path:
    """The folder of torch, found without its import."""
    return Path(importlib.util.find_spec("torch").origin).parent


def _torch_target() -> str:
    return re.search(r'TORCH_TARGET = "(.*)"', (ROOT / "build_native.py").read_text())[1]


def _kernel_stubs() -> Path:
    """A source with a function for every kernel that csrc/cuda/kernels.cpp names, registered as nvcc does."""
    names = re.findall(r"KERNEL\((\w+), \w+\)", (CSRC / "cuda/kernels.cpp").read_text())
    types = "void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*"
    lines = [f'extern "C" void __cudaRegisterFunction({types});']
    for name in names:
        call = f"__cudaRegisterFunction(0, reinterpret_cast<const char*>(&{name}), 0, "
        lines.append(f'extern "C" void {name}() {{}}')
        lines.append(f"__attribute__((constructor)) static void register_{name}() {{")
        lines.append(f'  {call}"{name}", -1, 0, 0, 0, 0, 0);\n}}')
    path = BUILD / "kernel_stubs.cpp"
    path.write_text("\n".join(lines) + "\n")
    return path


def _fill(folder: Path, objects: list[Path]) -> None:
    own = folder / "kradagrad_ext"
    own.mkdir()
    for path in (ROOT / "kradagrad_ext").iterdir():
        if path.suffix != ".so" and path.name not in ("_build.json", "__pycache__"):
            (own / path.name).symlink_to(path)
    (own / "triton_kernels").symlink_to(ROOT / "triton_kernels")
    record = {"requested": "cuda", "native": "cuda", "reason": None, "compiler": _compiler()}
    (own / "_build.json").write_text(json.dumps(record))
    _link(objects, own / "_native.abi3.so", [f"-L{_torch() / 'lib'}", "-ltorch_cpu"])
