"""Install the package next to several releases of torch, and run its native operators there.

Each release has a virtual environment in ``--folder``; a CUDA build of torch takes several GB. In each,
``pip install .`` must give a usable native backend, and the operators' tests must pass twice: with the
library that was built there, and with the one that was built against another of the releases.

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
INPUTS = sorted(path.stem for path in (ROOT / "tests/inputs").glob("*.py"))
OPS = [name for name in INPUTS if (ROOT / f"tests/test_{name}.py").exists()]
OPS += ["square_root_step", "decomposed_roots"]
"""Ops by the names of their tests."""
VARIABLES = {"KRADAGRAD_BUILD": "cpu", "OMP_NUM_THREADS": "1", **os.environ}
"""Variables of every command. CUDA kernels would take minutes to compile for each release, and need a GPU."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a release of torch."""

    release: str
    folder: Path
    isolated: bool
    """True if pip builds the package in isolation, which needs a torch installed in this environment."""

    def run(self, *command: str, where: Path = ROOT) -> str:
        """Run a program of the environment and return its output; exit if it fails."""
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=where, env=VARIABLES, text=True, capture_output=True
        )
        if done.returncode:
            output = (done.stdout + done.stderr)[-5000:]
            sys.exit(f"torch {self.release}: {' '.join(command)} failed:\n{output}")
        return done.stdout

    def packages(self) -> Path:
        """Return the folder of installed packages."""
        code = "import sysconfig; print(sysconfig.get_path('platlib'))"
        return Path(self.run("python", "-c", code).strip())

    def library(self) -> Path:
        """Return the path of the installed native library."""
        return self.packages() / "kradagrad_ext/_native.abi3.so"


def make(release: str, folder: Path, existing: Path | None) -> Environment:
    """Create an environment; its torch comes from an existing environment if one is named."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    environment = Environment(release, folder, existing is None)
    if existing is None:
        environment.run("pip", "install", "--quiet", f"torch=={release}")
        return environment
    other = Environment(release, existing, False)
    (environment.packages() / "torch_of_another_environment.pth").write_text(f"{other.packages()}\n")
    environment.run("pip", "install", "--quiet", *BUILDING)
    return environment


def install(environment: Environment) -> None:
    """Run ``pip install .`` and check that the native backend is usable."""
    start = time.perf_counter()
    options = [] if environment.isolated else ["--no-build-isolation", "--no-deps"]
    environment.run("pip", "install", "--quiet", "--force-reinstall", "--no-deps", *options, ".")
    seconds = time.perf_counter() - start
    report = environment.run("python", "-m", "kradagrad_ext.env_report", where=environment.folder)
    usable = [line for line in report.splitlines() if line.split() == ["cpu", "backend", "native", "usable"]]
    if not usable:
        sys.exit(f"torch {environment.release}: no usable native backend:\n{report}")
    torch = environment.run(
        "python", "-c", "import torch; print(torch.__version__)", where=environment.folder
    ).strip()
    print(f"torch {torch}: pip install . took {seconds:.0f} s, native usable", flush=True)


def test(environment: Environment, built: str) -> None:
    """Run the operators' tests with the library that was built against release `built`."""
    files = [f"tests/test_{op}.py" for op in OPS]
    # New releases of torch may warn where the pinned one does not.
    output = environment.run(
        "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-k", "native", *files
    )
    summary = output.strip().splitlines()[-1]
    print(f"torch {environment.release}, library built against {built}: {summary}", flush=True)
    if " passed" not in summary:
        sys.exit(f"torch {environment.release}: no test ran:\n{output}")


def main() -> None:
    """Install into every environment first, so that each library exists for the tests of the others."""
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
        environment = make(release, options.folder / release, existing.get(release))
        install(environment)
        # Packages of another environment have no commands in this one.
        environment.run("pip", "install", "--quiet", "--ignore-installed", *TESTING)
        libraries[release] = shutil.copyfile(environment.library(), options.folder / f"{release}.so")
        environments.append(environment)
    for environment, other in zip(environments, reversed(options.releases), strict=True):
        test(environment, environment.release)
        if other != environment.release:
            shutil.copyfile(libraries[other], environment.library())
            test(environment, other)
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
