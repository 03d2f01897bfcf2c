"""Installs the package beside several releases of torch, and runs its native operators there.

Each release has a virtual environment of its own in ``--folder``; a CUDA build of torch takes several GB. In
each, ``pip install .`` must give a native backend that is usable, and the operators' tests must pass twice:
with the library that was built there, and with the one that was built beside another of the releases.

    python tests/torch_versions.py
    python tests/torch_versions.py --releases 2.11.0 2.14.1 --environment 2.14.1=/path/of/an/environment
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("2.10.0", "2.11.0", "2.13.0", "2.14.1")
BUILDING = ("setuptools>=77", "ninja")
TESTING = ("numpy", "pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")
OPS = (
    "square_root",
    "square_root_step",
    "observe_gradients",
    "accumulate",
    "scale_updates",
    "parameter_step",
    "decomposed_roots",
)
VARIABLES = {"KRADAGRAD_BUILD": "cpu", "OMP_NUM_THREADS": "1", **os.environ}
"""The kernels for CUDA would take minutes for each release, and need a GPU to run."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a release of torch."""

    release: str
    folder: Path
    isolated: bool
    """Whether the package is built in isolation, which sees torch only where it is installed itself."""

    def run(self, *command: str, where: Path = ROOT) -> str:
        """Run a program of the environment and return what it prints; exits where it fails."""
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=where, env=VARIABLES, text=True, capture_output=True
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-5000:]
            sys.exit(f"torch {self.release}: {' '.join(command)} failed:\n{said}")
        return done.stdout

    def packages(self) -> Path:
        """Where packages are installed."""
        code = "import sysconfig; print(sysconfig.get_path('platlib'))"
        return Path(self.run("python", "-c", code).strip())

    def library(self) -> Path:
        """The installed native library."""
        return self.packages() / "kradagrad_ext/_native.abi3.so"


def make(release: str, folder: Path, existing: Path | None) -> Environment:
    """A fresh environment; torch comes from an existing one where it is named."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    own = Environment(release, folder, existing is None)
    if existing is None:
        own.run("pip", "install", "--quiet", f"torch=={release}")
        return own
    other = Environment(release, existing, False)
    (own.packages() / "torch_of_another_environment.pth").write_text(f"{other.packages()}\n")
    own.run("pip", "install", "--quiet", *BUILDING)
    return own


def install(own: Environment) -> None:
    """Run ``pip install .`` and check that the native backend is usable."""
    start = time.perf_counter()
    options = [] if own.isolated else ["--no-build-isolation", "--no-deps"]
    own.run("pip", "install", "--quiet", "--force-reinstall", "--no-deps", *options, ".")
    seconds = time.perf_counter() - start
    report = own.run("python", "-m", "kradagrad_ext.env_report", where=own.folder)
    usable = [line for line in report.splitlines() if line.split() == ["cpu", "backend", "native", "usable"]]
    if not usable:
        sys.exit(f"torch {own.release}: no usable native backend:\n{report}")
    torch = own.run("python", "-c", "import torch; print(torch.__version__)", where=own.folder).strip()
    print(f"torch {torch}: pip install . took {seconds:.0f} s, native usable", flush=True)


def test(own: Environment, built: str) -> None:
    """Run the operators' tests, with a library that was built beside some release."""
    files = [f"tests/test_{op}.py" for op in OPS]
    # New releases of torch may warn where the pinned one does not.
    output = own.run("pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-k", "native", *files)
    summary = output.strip().splitlines()[-1]
    print(f"torch {own.release}, library built beside {built}: {summary}", flush=True)
    if " passed" not in summary:
        sys.exit(f"torch {own.release}: no test ran:\n{output}")


def main() -> None:
    """Install everywhere first, so that each library is there for the others."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--releases", nargs="+", default=RELEASES)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/torch-versions")
    parser.add_argument("--environment", nargs="*", default=[], metavar="RELEASE=FOLDER", help="with torch")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    existing = {release: Path(path) for release, path in (item.split("=") for item in options.environment)}
    environments, libraries = [], {}
    for release in options.releases:
        own = make(release, options.folder / release, existing.get(release))
        install(own)
        # What another environment lends has no commands here.
        own.run("pip", "install", "--quiet", "--ignore-installed", *TESTING)
        libraries[release] = shutil.copyfile(own.library(), options.folder / f"{release}.so")
        environments.append(own)
    for own, other in zip(environments, reversed(options.releases), strict=True):
        test(own, own.release)
        if other != own.release:
            shutil.copyfile(libraries[other], own.library())
            test(own, other)
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
