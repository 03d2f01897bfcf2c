"""Time the build of the package from a clean checkout of the committed sources, and after changes to it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from bench.common import ROOT

CHANGES = {
    "nothing": None,
    "one kernel's file": "csrc/cuda/kernels/update_moments.cu",
    "one kernel's header": "csrc/cuda/kernels/elementwise.cuh",
    "every kernel's header": "csrc/cuda/kernels/ptx.cuh",
    "one C++ file": "csrc/cpu/operand.cpp",
    "every operator's header": "csrc/checks.h",
    "nothing, again": None,
}
"""The changes in order; each appends a comment to its file."""
LIBRARY = "import build_backend, build_native; build_native.build_library(build_backend.decide())"
SDIST = "import build_backend; build_backend.build_sdist('dist')"


def build_seconds() -> float | None:
    """Return the seconds to build a CPU wheel from the committed sources; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        return seconds_of(wheel_command(folder), checkout(Path(folder)), "cpu")


def wheel_command(folder: str) -> list[str]:
    """Return the command that makes a wheel of the sources in the current folder."""
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", folder]
    return [sys.executable, "-m", "pip", "wheel", *options, "."]


def checkout(folder: Path) -> Path:
    """Extract the committed sources and return their folder."""
    archive, sources = folder / "sources.tar", folder / "checkout"
    subprocess.run(["git", "archive", "-o", archive, "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(sources, filter="data")
    return sources


def unpacked_sdist(sources: Path) -> Path:
    """Make a source distribution, extract it and return its folder."""
    seconds_of([sys.executable, "-c", SDIST], sources, "none")
    (archive,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(sources / "dist", filter="data")
    return sources / "dist" / archive.name.removesuffix(".tar.gz")


def seconds_of(command: list[str], sources: Path, build: str) -> float:
    """Return the seconds that a command takes, without the cache of compiled files.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    environment = dict(os.environ, KRADAGRAD_BUILD=build, KRADAGRAD_CACHE="")
    start = time.perf_counter()
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"building the extension failed: {(done.stdout + done.stderr)[-2000:]}")
    return elapsed


def report(build: str, sdist: bool) -> None:
    """Print the build time of the library alone after each change, and of a complete wheel."""
    with tempfile.TemporaryDirectory() as folder:
        sources = checkout(Path(folder))
        if sdist:
            sources = unpacked_sdist(sources)
        compiling = [sys.executable, "-c", LIBRARY]
        print(f"{build}, from nothing: {seconds_of(compiling, sources, build):.1f} s", flush=True)
        for name, path in CHANGES.items():
            if path:
                with (sources / path).open("a") as file:
                    file.write("// changed\n")
            seconds = seconds_of(compiling, sources, build)
            print(f"{build}, after a change of {name}: {seconds:.1f} s", flush=True)
        wheel = seconds_of(wheel_command(folder), sources, build)
        print(f"{build}, pip wheel with nothing to compile: {wheel:.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", choices=("cpu", "cuda"), default="cpu", help="KRADAGRAD_BUILD")
    parser.add_argument(
        "--sdist", action="store_true", help="build from a source distribution instead of the checkout"
    )
    options = parser.parse_args()
    report(options.build, options.sdist)
