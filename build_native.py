"""Build of the native library: C++ by the C++ compiler, kernels by nvcc, linked into one file."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_backend import Decision, compiler_version, find_torch, oldest_glibc, stop
from compile_cached import cache_folder
from ninja_rules import GIB, ROOT, Build, BuildError, Compiler, environment_facts, jobs

# The stable ABI of torch 2.10: one binary for that release and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# The two -fno flags change no result. Without them, loops with square roots and divisions are not vectorised.
COMPILE_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
COMPILE_FLAGS += ["-fvisibility=hidden", "-Wall", TORCH_TARGET]
LINK_FLAGS = ["-Wl,-z,defs"] if sys.platform == "linux" else []

# -lineinfo is for profilers and compute-sanitizer and changes no code. Architectures, and the kernels of one
# file, are compiled in parallel. Compression for size makes the library a quarter as large as by default.
NVCC_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "--threads=0", "--split-compile=0"]
NVCC_FLAGS += ["--compress-mode=size", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"
"""Default of TORCH_CUDA_ARCH_LIST. Later GPUs compile their code from the PTX that +PTX adds."""
VIRTUAL_ARCHITECTURE = "compute_80"
CUDA_LIBRARIES = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def found(*patterns: str) -> list[Path]:
    """Return the files of the tree that match the patterns, relative to its root."""
    return [path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


CPU_SOURCES = found("csrc/ops.cpp", "csrc/cpu/*.cpp")
CUDA_SOURCES = found("csrc/cuda/*.cpp", "csrc/cuda/plan/*.cpp")
KERNELS = found("csrc/cuda/kernels/*.cu")
PORTABLE_SOURCES = found("csrc/portable/*.cpp")
EXPORTS = "csrc/portable/exports.map"
KERNELS_INCLUDE = ("csrc/scalar_rules.h",)
"""Headers outside the kernels' folder, shared with the CPU code."""

CXX_MEMORY, NVCC_MEMORY = GIB // 2, 3 * GIB


def sources(decision: Decision) -> list[Path]:
    """Return the sources that a decision compiles; the kernels take longest and come first."""
    portable = PORTABLE_SOURCES if oldest_glibc() else []
    return [*(KERNELS + CUDA_SOURCES if decision.nvcc else ()), *CPU_SOURCES, *portable]


def kernels_digest() -> str:
    """Hash the kernels' sources, to compare a built library with the tree."""
    digest = hashlib.sha256()
    shared = [ROOT / name for name in KERNELS_INCLUDE]
    for path in (*sorted((ROOT / "csrc/cuda/kernels").iterdir()), *shared):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def architectures() -> str:
    """Return TORCH_CUDA_ARCH_LIST, or its default, in torch's notation: ``8.0;9.0+PTX``."""
    return (os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES).replace(" ", ";")


def architecture_flags() -> list[str]:
    """Return nvcc's flags for `architectures`.

    The kernels use only features that every architecture from 8.0 on has. So the machine code of each
    architecture is compiled from one PTX. +PTX adds the same PTX to the library, and the tests execute it.
    """
    codes = []
    for item in architectures().split(";"):
        match = re.fullmatch(r"(\d+)\.(\d)a?(\+PTX)?", item)
        if match is None or int(match[1]) < 8:
            stop(f"TORCH_CUDA_ARCH_LIST must be like {CUDA_ARCHITECTURES!r}, from 8.0 on, got {item!r}")
        codes += [f"sm_{match[1]}{match[2]}", *([VIRTUAL_ARCHITECTURE] if match[3] else [])]
    unique = dict.fromkeys(codes)
    return [f"-gencode=arch={VIRTUAL_ARCHITECTURE},code={code}" for code in unique]


def build_native(decision: Decision) -> type[build_ext]:
    """Return the setuptools command that builds a decision's library."""

    class BuildNative(build_ext):
        """The build of one operator library. ``torch.ops.load_library`` loads it; it does not link Python."""

        def get_ext_filename(self, fullname: str) -> str:
            return str(Path(*fullname.split("."))) + ".abi3.so"

        def build_extension(self, ext: Extension) -> None:
            built, target = build_library(decision), Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            shutil.copyfile(built, partial)
            partial.replace(target)  # processes that have loaded the earlier file keep it

    return BuildNative


def build_library(decision: Decision) -> str:
    """Compile the changed sources, link the library and return its path."""
    torch = find_torch()
    if torch is None:
        stop("torch >= 2.10 is needed for the native library: install it first, or build with isolation")
    compilers = compilers_of(decision, str(torch.locate_file("torch/include")), torch.version)
    tools = f"{compilers} {environment_flags('LDFLAGS')} {oldest_glibc()}"
    build = Build(Path("build", f"native-{hashlib.sha256(tools.encode()).hexdigest()[:12]}"))
    try:
        objects = [build.compile(compilers[path.suffix], path, f"{path}.o") for path in sources(decision)]
        library = link(decision, build, objects, str(torch.locate_file("torch/lib")))
        print(f"building {library}: {len(objects)} files, {jobs()} at a time (MAX_JOBS)", flush=True)
        build.run(show=True)
    except BuildError as error:
        stop(f"{error}; KRADAGRAD_BUILD=none installs the package without it")
    return library


def compilers_of(decision: Decision, headers: str, torch: str) -> dict[str, Compiler]:
    """Return the compilers of a decision by source suffix, for a version of torch and its headers."""
    if decision.compiler is None:
        raise ValueError(f"nothing is compiled: {decision.reason}")
    # -isystem: no warnings from torch's headers. The prefix map makes objects independent of torch's folder.
    system = ["-isystem", headers, f"-ffile-prefix-map={headers}=include"]
    command = [*decision.compiler, *COMPILE_FLAGS, *environment_flags("CXXFLAGS"), "-c"]
    version = f"{compiler_version(decision.compiler)} {environment_facts('CPATH', 'CPLUS_INCLUDE_PATH')}"
    if not decision.nvcc:
        return {".cpp": Compiler("CXX", command, system, f"{version} torch {torch}", CXX_MEMORY)}
    command.insert(-1, "-DUSE_CUDA")
    system += toolkit_flags(decision, "INCLUDES")
    version += compiler_version(decision.nvcc) + environment_facts("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
    kernels = [*decision.nvcc, *NVCC_FLAGS, "-ccbin", decision.compiler[0], *architecture_flags(), "-c"]
    return {
        ".cpp": Compiler("CXX", command, system, f"{version} torch {torch}", CXX_MEMORY),
        ".cu": Compiler("NVCC", kernels, [], version, NVCC_MEMORY),
    }


def link(decision: Decision, build: Build, objects: list[str], torch: str) -> str:
    """Add the shared library of all objects and return its path.

    CUDA's runtime is linked statically, so that the library loads on a machine without CUDA.

    Args:
        torch: folder of torch's libraries.
    """
    libraries = [f"-L{torch}", "-ltorch_cpu"]
    if decision.nvcc:
        libraries += [*toolkit_flags(decision, "LIBRARIES"), *CUDA_LIBRARIES]
    compiler, glibc = decision.compiler or (), oldest_glibc()
    command = portable_linker(glibc) if glibc else [*compiler, *LINK_FLAGS]
    libraries += [*(portable_libraries(compiler) if glibc else ()), *environment_flags("LDFLAGS")]
    return build.link(command, objects, libraries, "_native.abi3.so")


def portable_linker(glibc: str) -> list[str]:
    """Return the command that links for a glibc older than this machine's: zig has the symbols of every one.

    The objects are those of a build without KRADAGRAD_GLIBC.
    """
    cache = cache_folder("zig")
    variables = [f"ZIG_{kind}_CACHE_DIR={cache}" for kind in ("GLOBAL", "LOCAL")] if cache else []
    target = f"{platform.machine()}-linux-gnu.{glibc}"
    command = ["env", *variables, sys.executable, "-m", "ziglang", "cc", "-target", target]
    return [*command, "-Wl,-z,defs", f"-Wl,--version-script={EXPORTS}"]


def portable_libraries(compiler: tuple[str, ...]) -> list[str]:
    """Return the libraries of the compiler, in place of zig's.

    An exception that torch catches has to be of the C++ library that torch uses. The choice between clones of
    a function reads libgcc's table of the CPU's features, which differs from zig's.
    """
    paths = []
    for name in ("libstdc++.so", "libgcc.a", "libgcc_s.so.1"):
        command = [*compiler, f"-print-file-name={name}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return ["-nostdlib++", *paths, "-lm"]


def toolkit_flags(decision: Decision, name: str) -> list[str]:
    """Return the toolkit's INCLUDES or LIBRARIES as nvcc prints them: nvcc may be a wrapper in any folder."""
    result = subprocess.run(
        [*(decision.nvcc or ()), "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith(f"#$ {name}=")]
    if not lines:
        stop(f"nvcc --dryrun does not print its {name}: {result.stderr}")
    return shlex.split(lines[0].partition("=")[2])


def environment_flags(name: str) -> list[str]:
    """Return the flags that an environment variable adds."""
    return shlex.split(os.environ.get(name, ""))
