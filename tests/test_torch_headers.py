"""Every C++ source compiles beside the oldest torch that is supported, and the newest."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from compiled_module import ROOT, ninja_rules
from marks import slow
from torch_headers import include_folder

import build_native
from build_backend import Decision, find_compiler, find_nvcc

TORCH = ("2.10.0", "2.14.1")


def headers_of(version: str) -> Path:
    """Return a release's headers; without them, skip the test, or fail if the environment asks for them."""
    try:
        return include_folder(version)
    except RuntimeError as error:
        if os.environ.get("KRADAGRAD_REQUIRE_TORCH_HEADERS"):
            pytest.fail(f"KRADAGRAD_REQUIRE_TORCH_HEADERS is set: {error}")
        pytest.skip(str(error))


def build_of(version: str, headers: Path) -> ninja_rules.Build:
    """Return a build of all C++ sources, those for CUDA too if there is nvcc."""
    decision = Decision("auto", find_compiler()[0], find_nvcc(), None)
    compiler = build_native.compilers_of(decision, str(headers), version)[".cpp"]
    quick = dataclasses.replace(compiler, command=[*compiler.command, "-O0"])
    build = ninja_rules.Build(ROOT / "build/torch-headers-test" / version)
    for path in build_native.sources(decision):
        if path.suffix == ".cpp":
            build.compile(quick, path, f"{path}.o")
    return build


@slow
@pytest.mark.skipif(find_compiler()[0] is None, reason="no C++ compiler")
@pytest.mark.parametrize("version", TORCH)
def test_every_source_compiles_beside(version: str) -> None:
    build_of(version, headers_of(version)).run()


@pytest.mark.skipif(find_compiler()[0] is None, reason="no C++ compiler")
def test_what_a_torch_lacks_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ninja_rules.BuildError, match=r"torch/csrc/stable/library\.h: No such file"):
        build_of("none", tmp_path).run()
