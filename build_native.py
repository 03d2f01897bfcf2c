"""How the native library is built: C++ with the C++ compiler, kernels with nvcc, linked into one file."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_backend import Decision, compiler_version, find_torch, stop

# The stable ABI of torch 2.10: one binary for that release and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# The two -fno flags change no value; without them loops with square roots and divisions are not vectorised.
COMPILE_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
COMPILE_FLAGS += ["-fvisibility=hidden", "-Wall", TORCH_TARGET]
LINK_FLAGS = ["-Wl,-z,defs"] if sys.platform == "linux" else []

# Source lines, for profilers and compute-sanitizer, change no code. Architectures, and the kernels of a file,
# are compiled side by side.
NVCC_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "--threads=0", "--split-compile=0"]
NVCC_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"
"""Default of TORCH_CUDA_ARCH_LIST; +PTX is what later chips compile their code from."""
VIRTUAL_ARCHITECTURE = "compute_80"
CUDA_LIBRARIES = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]

CPU_SOURCES = [Path("csrc/ops.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
CUDA_SOURCES = [*sorted(Path("csrc/cuda").glob("*.cpp")), *sorted(Path("csrc/cuda/plan").glob("*.cpp"))]
KERNELS = sorted(Path("csrc/cuda/kernels").glob("*.cu"))
HEADERS = sorted([*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")])


def sources(decision: Decision) -> list[Path]:
    """What a decision compiles; kernels first, which take longest."""
    return [*KERNELS, *CUDA_SOURCES, *CPU_SOURCES] if decision.nvcc else CPU_SOURCES


def kernels_digest(root: Path = Path()) -> str:
    """A hash of the kernels' sources, by which a library tells whether it was built from them."""
    digest = hashlib.sha256()
    for path in sorted((root / "csrc/cuda/kernels").iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def architecture_flags() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, in torch's notation: ``8.0;9.0+PTX``.

    The kernels use what every architecture from 8.0 on has: one PTX is what the machine code of each is made
    from, what +PTX adds to the library, and what the tests execute.
    """
    codes = []
    for item in (os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES).replace(" ", ";").split(";"):
        match = re.fullmatch(r"(\d+)\.(\d)a?(\+PTX)?", item)
        if match is None or int(match[1]) < 8:
            stop(f"TORCH_CUDA_ARCH_LIST must be like {CUDA_ARCHITECTURES!r}, from 8.0 on, got {item!r}")
        codes += [f"sm_{match[1]}{match[2]}", *([VIRTUAL_ARCHITECTURE] if match[3] else [])]
    unique = dict.fromkeys(codes)
    return [f"-gencode=arch={VIRTUAL_ARCHITECTURE},code={code}" for code in unique]


def build_native(decision: Decision) -> type[build_ext]:
    """The command that builds what was decided."""

    class BuildNative(build_ext):
        """One library of operators, loaded by ``torch.ops.load_library``: it needs nothing from Python."""

        def get_ext_filename(self, fullname: str) -> str:
            return str(Path(*fullname.split("."))) + ".abi3.so"

        def build_extension(self, ext: Extension) -> None:
            link(decision, compile_all(decision), Path(self.get_ext_fullpath(ext.name)))

    return BuildNative


def compile_all(decision: Decision) -> list[str]:
    """Compile every source that is newer than its object."""
    distribution = find_torch()
    if distribution is None:
        stop("torch >= 2.10 is needed for the native library: install it first, or build with isolation")
    # -isystem: warnings are for our own sources.
    include = ["-isystem", str(distribution.locate_file("torch/include"))]
    cpp = [*decision.compiler, *COMPILE_FLAGS, *include, *environment_flags("CXXFLAGS")]
    commands = {".cpp": cpp}
    if decision.nvcc:
        cpp += ["-DUSE_CUDA", *toolkit_flags(decision, "INCLUDES")]
        host = ["-ccbin", decision.compiler[0]]
        commands[".cu"] = [*decision.nvcc, *NVCC_FLAGS, *host, *architecture_flags()]
        commands[".cu"] += environment_flags("NVCC_APPEND_FLAGS")
    tools = f"{commands} {compiler_version(decision.compiler)} {distribution.version}"
    folder = Path("build", f"objects-{hashlib.sha256(tools.encode()).hexdigest()[:12]}")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(
            pool.map(lambda path: compile_object(commands[path.suffix], path, folder), sources(decision))
        )


def link(decision: Decision, objects: list[str], library: Path) -> None:
    """One shared library of all objects; CUDA's runtime goes in statically, so that it loads without CUDA."""
    library.parent.mkdir(parents=True, exist_ok=True)
    torch = find_torch()
    folders = [f"-L{torch.locate_file('torch/lib')}"] if torch else []
    libraries = ["-ltorch_cpu"]
    if decision.nvcc:
        folders += toolkit_flags(decision, "LIBRARIES")
        libraries += CUDA_LIBRARIES
    command = [*decision.compiler, *LINK_FLAGS, "-shared", *objects, "-o", str(library), *folders, *libraries]
    run([*command, *environment_flags("LDFLAGS")])


def toolkit_flags(decision: Decision, name: str) -> list[str]:
    """The toolkit's own INCLUDES or LIBRARIES, as nvcc gives them: nvcc may be a wrapper, or lie anywhere."""
    result = subprocess.run(
        [*(decision.nvcc or ()), "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    found = [line for line in result.stderr.splitlines() if line.startswith(f"#$ {name}=")]
    if not found:
        stop(f"nvcc --dryrun does not tell its {name}: {result.stderr}")
    return shlex.split(found[0].partition("=")[2])


def compile_object(command: list[str], source: Path, folder: Path) -> str:
    """Compile one source, unless its object is newer than it and every header."""
    target = (folder / source).with_suffix(f"{source.suffix}.o")
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in [source, *HEADERS]):
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.o")
    run([*command, "-c", str(source), "-o", str(partial)])
    partial.replace(target)  # so that an interrupted compiler leaves no object to take up
    return str(target)


def environment_flags(name: str) -> list[str]:
    """Flags that the packager's environment adds."""
    return shlex.split(os.environ.get(name, ""))


def run(command: list[str]) -> None:
    """Run and show a build command; end the build where it fails."""
    print(shlex.join(command), flush=True)
    if subprocess.run(command).returncode:
        stop("the compiler failed, see above; KRADAGRAD_BUILD=none installs the package without it")
