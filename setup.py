"""The native library and where the packages lie; build_backend.py decides what is built."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from build_backend import compiler_version, decide, find_torch, stop

LIBRARY = "kradagrad_ext/_native.abi3.so"
BUILD_RECORD = "kradagrad_ext/_build.json"

# The stable ABI of torch 2.10: one binary for that release and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# The two -fno flags change no value; without them loops with square roots and divisions are not vectorised.
COMPILE_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
COMPILE_FLAGS += ["-fvisibility=hidden", "-Wall", TORCH_TARGET]
LINK_FLAGS = ["-Wl,-z,defs"] if sys.platform == "linux" else []

DECISION = decide()
SOURCES = [Path("csrc/ops.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]
HEADERS = sorted(Path("csrc").rglob("*.h"))


class BuildNative(build_ext):
    """One library of operators, loaded by ``torch.ops.load_library``: it needs nothing from Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def build_extension(self, ext: Extension) -> None:
        distribution = find_torch()
        if distribution is None:
            stop("torch >= 2.10 is needed for the native library: install it first, or build with isolation")
        torch = Path(str(distribution.locate_file("torch")))
        # -isystem: warnings are for our own sources.
        include = ["-isystem", str(torch / "include")]
        command = [*DECISION.compiler, *COMPILE_FLAGS, *include, *environment_flags("CXXFLAGS")]
        tools = f"{command} {compiler_version(DECISION.compiler)} {distribution.version}"
        folder = Path("build", f"objects-{hashlib.sha256(tools.encode()).hexdigest()[:12]}")
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: compile_object(command, source, folder), SOURCES))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        linked = ["-shared", *objects, "-o", str(library), f"-L{torch / 'lib'}", "-ltorch_cpu"]
        run([*DECISION.compiler, *LINK_FLAGS, *linked, *environment_flags("LDFLAGS")])


class BuildPython(build_py):
    """The Python files, and a record of what was built, which the installed package reads."""

    def run(self) -> None:
        super().run()
        folder = Path() if self.editable_mode else Path(self.build_lib)
        record = {"requested": DECISION.requested, "native": "none", "reason": DECISION.reason}
        if DECISION.compiler:
            torch = find_torch()
            record["native"] = "cpu"
            record["compiler"] = compiler_version(DECISION.compiler)
            record["torch"] = torch.version if torch else None
        else:
            self.warn(f"installing kradagrad_ext without its native library: {DECISION.reason}")
            (folder / LIBRARY).unlink(missing_ok=True)  # that an earlier editable install left
        (folder / BUILD_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def compile_object(command: list[str], source: Path, folder: Path) -> str:
    """Compile one source, unless its object is newer than it and every header."""
    target = (folder / source).with_suffix(".o")
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
        stop("the C++ compiler failed, see above; KRADAGRAD_BUILD=none installs the package without it")


native = Extension("kradagrad_ext._native", [str(source) for source in SOURCES], py_limited_api=True)

setup(
    # PyPI has a distribution named triton_kernels: ours is installed inside the package.
    packages=[*find_packages(include=["kradagrad_ext", "kradagrad_ext.*"]), "kradagrad_ext.triton_kernels"],
    package_dir={"kradagrad_ext.triton_kernels": "triton_kernels"},
    package_data={"kradagrad_ext": ["py.typed"]},
    ext_modules=[native] if DECISION.compiler else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if DECISION.compiler else {},
)
