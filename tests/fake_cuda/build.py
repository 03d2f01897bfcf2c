"""Build of the fake runtime, and of the package with a native library that uses a preloaded CUDA runtime.

The package's library contains CUDA's runtime, so a preloaded library sees none of its calls. Here the same
host code is linked without the runtime. The kernels are not compiled, as none is run: a function of each
kernel's name stands for it, as nvcc's stub does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import ninja_rules  # noqa: E402  (on the path by the line above)
from build_backend import compiler_version, find_compiler  # noqa: E402
from build_native import TORCH_TARGET, found  # noqa: E402

HERE = Path(__file__).resolve().parent.relative_to(ROOT)
BUILD = Path("build/fake-cuda")
"""Relative to the root, as all paths of a build."""
RUNTIME_FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Wextra"]
HOST_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA", TORCH_TARGET]


def runtime() -> Path:
    """Return the folder of libcuda.so.1, which is the fake runtime and the fake driver."""
    folder = BUILD / "runtime"
    flags = ["-Wl,-z,defs", "-Wl,-soname,libcuda.so.1", "-ldl"]
    library = _library(folder, found(f"{HERE}/runtime/*.cpp"), RUNTIME_FLAGS, [], flags, "libcuda.so.1")
    _link_to(library.with_name("libcuda.so"), Path("libcuda.so.1"))
    return library.parent


def package() -> Path:
    """Return a folder to import kradagrad_ext from: links to the tree's package, and the library above."""
    torch = Path(importlib.util.find_spec("torch").origin).parent  # without its import
    flags = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    sources = [*found("csrc/**/*.cpp"), _kernel_stubs()]
    library = _library(BUILD / "native", sources, HOST_FLAGS, [torch / "include"], flags, "_native.abi3.so")
    folder = ROOT / BUILD / "package"
    package = folder / "kradagrad_ext"
    package.mkdir(parents=True, exist_ok=True)
    for broken in (path for path in package.iterdir() if not path.exists()):
        broken.unlink(missing_ok=True)
    for path in (ROOT / "kradagrad_ext").iterdir():
        if path.suffix != ".so" and path.name not in ("_build.json", "__pycache__"):
            _link_to(package / path.name, path)
    _link_to(package / "triton_kernels", ROOT / "triton_kernels")
    _link_to(package / library.name, library)
    record = {"requested": "cuda", "native": "cuda", "reason": None, "compiler": shlex.join(_compiler())}
    _write(package / "_build.json", json.dumps(record))
    return folder


@functools.cache
def cuda_headers() -> Path:
    """Return the folder of cuda.h and cuda_runtime_api.h: Triton's, or a toolkit's."""
    triton = importlib.util.find_spec("triton")
    roots = triton.submodule_search_locations if triton else ()
    places = [Path(root) / "backends/nvidia/include" for root in roots or ()]
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    places += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    for place in places:
        # A step of torch queries streams' captures with the signature of CUDA 13.
        text = place / "cuda_runtime_api.h"
        if text.exists() and re.search(r"define CUDART_VERSION\s+13", text.read_text()):
            return place
    raise FileNotFoundError("CUDA 13's headers come with Triton or with a toolkit; neither has them here")


def _library(
    folder: Path,
    sources: Sequence[Path],
    flags: Sequence[str],
    system: Sequence[Path],
    libraries: Sequence[str],
    output: str,
) -> Path:
    """Build a shared library of sources that include CUDA's headers and those of `system`."""
    command, folders = _compiler(), [*system, cuda_headers()]
    version = f"{compiler_version(command)} torch {metadata.version('torch')} {folders}"
    included = [word for path in folders for word in ("-isystem", str(path))]
    compiler = ninja_rules.Compiler("CXX", [*command, *flags, "-c"], included, version, ninja_rules.GIB)
    build = ninja_rules.Build(folder)
    objects = [build.compile(compiler, source, f"{source}.o") for source in sources]
    library = build.link(command, objects, libraries, output)
    build.run()
    return ROOT / library


def _compiler() -> tuple[str, ...]:
    command, tried = find_compiler()
    if command is None:
        raise FileNotFoundError(f"no C++ compiler found: {tried}")
    return command


def _link_to(path: Path, target: Path) -> None:
    """Make a link unless it exists; another process may make it, too."""
    with contextlib.suppress(FileExistsError):
        path.symlink_to(target)


def _write(path: Path, text: str) -> None:
    """Write a file only if its text changes, so that an unchanged file causes no compilation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(text)
        partial.replace(path)


def kernel_names() -> list[str]:
    """Return the kernels that csrc/cuda/kernels.cpp and the headers of kernels/ list."""
    lists = [ROOT / "csrc/cuda/kernels.cpp", *sorted((ROOT / "csrc/cuda/kernels").glob("*.h"))]
    return [name for path in lists for name in re.findall(r"\bKERNEL\((\w+), \w+\)", path.read_text())]


def _kernel_stubs() -> Path:
    """Write a source with a function for every kernel, registered as nvcc does."""
    types = "void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*"
    lines = [f'extern "C" void __cudaRegisterFunction({types});']
    for name in kernel_names():
        call = f"__cudaRegisterFunction(0, reinterpret_cast<const char*>(&{name}), 0, "
        lines.append(f'extern "C" void {name}() {{}}')
        lines.append(f"__attribute__((constructor)) static void register_{name}() {{")
        lines.append(f'  {call}"{name}", -1, 0, 0, 0, 0, 0);\n}}')
    path = BUILD / "kernel_stubs.cpp"
    _write(ROOT / path, "\n".join(lines) + "\n")
    return path
