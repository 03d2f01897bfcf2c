"""Setuptools configuration: packages and native library. build_backend.py decides what is built."""

from __future__ import annotations

import json
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

from build_backend import compiler_version, decide, find_torch, oldest_glibc
from build_native import architectures, build_native, kernels_digest, sources

LIBRARY = "kradagrad_ext/_native.abi3.so"
BUILD_RECORD = "kradagrad_ext/_build.json"

DECISION = decide()


class BuildPython(build_py):
    """The command that copies the Python files and writes the record of the build that the package reads."""

    def run(self) -> None:
        super().run()
        folder = Path() if self.editable_mode else Path(self.build_lib)
        record = {"requested": DECISION.requested, "native": DECISION.native, "reason": DECISION.reason}
        if DECISION.compiler:
            torch = find_torch()
            record["compiler"] = compiler_version(DECISION.compiler)
            record["torch"] = torch.version if torch else None
            record["glibc"] = oldest_glibc()
            if DECISION.nvcc:
                record["nvcc"] = compiler_version(DECISION.nvcc)
                record["architectures"] = architectures()
                record["kernels"] = kernels_digest()
        else:
            self.warn(f"installing kradagrad_ext without its native library: {DECISION.reason}")
            (folder / LIBRARY).unlink(missing_ok=True)  # of an earlier editable install
        (folder / BUILD_RECORD).write_text(json.dumps(record, indent=2) + "\n")


native = Extension("kradagrad_ext._native", [str(path) for path in sources(DECISION)], py_limited_api=True)

# PyPI has a distribution named triton_kernels, so this one is installed inside the package.
KERNELS = [f"kradagrad_ext.{name}" for name in find_packages(include=["triton_kernels", "triton_kernels.*"])]

setup(
    packages=[*find_packages(include=["kradagrad_ext", "kradagrad_ext.*"]), *KERNELS],
    package_dir={"kradagrad_ext.triton_kernels": "triton_kernels"},
    package_data={
        "kradagrad_ext": ["py.typed"],
        "kradagrad_ext.cost.time_model": ["*.csv"],
        "kradagrad_ext.triton_kernels.plan": ["*.csv"],
    },
    ext_modules=[native] if DECISION.compiler else [],
    cmdclass={"build_ext": build_native(DECISION), "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if DECISION.compiler else {},
)
