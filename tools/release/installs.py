"""Install the wheel, the sdist and the kernel layout into fresh environments, and take steps in each.

    python tools/release/installs.py dist build/hub-kernel --torch 'torch==2.13.0'
    python tools/release/installs.py dist build/hub-kernel --python 3.13 --torch torch --no-sdist

Steps with the wheel, with the package built from the sdist and with the kernel must give the same bits and
the same errors. The environments are removed at the end. On every other supported Python of this machine,
the wheel is installed without torch: its tags fit, its files compile, and its library loads beside the
first environment's torch. That takes seconds; steps on such a Python (`--python`) need a torch for it,
often several GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = Path(__file__).resolve().parent / "steps.py"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
KERNELS = "kernels>=0.17"
NAME = "kradagrad-ext"


def main() -> None:
    """Read the command line and check one Python with torch, and every other one without."""
    parser = argparse.ArgumentParser(description="Install the distributions into fresh environments.")
    parser.add_argument("folder", type=Path, help="a folder with one wheel and one sdist")
    parser.add_argument("kernel", type=Path, help="a kernel repository that hub_kernel.py has written")
    parser.add_argument(
        "--python", default=sys.executable, help="Python of the environment with torch: a command, or 3.12"
    )
    parser.add_argument("--torch", default="torch", help="pip's requirement for torch there")
    parser.add_argument("--no-sdist", action="store_true", help="leave out the build of the sdist")
    options = parser.parse_args()
    find = find_python if re.fullmatch(r"\d\.\d+", options.python) else shutil.which
    python = find(options.python)
    if python is None:
        sys.exit(f"installs: `--python` must be a Python of this machine, got {options.python}")
    (wheel,), (sdist,) = options.folder.resolve().glob("*.whl"), options.folder.resolve().glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="kradagrad_ext-") as scratch:
        first = Environment(python, Path(scratch, "first"))
        first.run("pip", "install", "--quiet", options.torch)
        check_steps(first, wheel, None if options.no_sdist else sdist, options.kernel.resolve())
        libraries = first.evaluate("import torch; print(torch.__path__[0])") + "/lib"
        for version in PYTHONS:
            other = find_python(version)
            if other is None:
                print(f"Python {version}: not on this machine")
            elif version != first.version:
                check_without_torch(Environment(other, Path(scratch, version)), wheel, libraries)


class Environment:
    """A fresh virtual environment in a folder."""

    def __init__(self, python: str, folder: Path) -> None:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        self.folder = folder
        self.version = self.evaluate("import sys; print('%d.%d' % sys.version_info[:2])")

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment outside the tree and return its output; exit if it fails."""
        command = [str(self.folder / "bin" / program), *arguments]
        # A torch that is installed stays; PYTHONPATH would let the source tree win over what is installed.
        hidden = ("PYTHONPATH", "KRADAGRAD_BACKEND", "KRADAGRAD_GLIBC")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"installs: {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-5000:]}")
        return done.stdout

    def evaluate(self, code: str) -> str:
        """Run Python code and return what it prints."""
        return self.run("python", "-c", code).strip()

    def steps(self, what: str, *arguments: str) -> dict[str, Any]:
        """Take steps and return their report, of which one line is printed."""
        report: dict[str, Any] = json.loads(self.run("python", str(STEPS), *arguments))
        where = f"Python {report['python']}, torch {report['torch']}"
        print(f"{where}, {what}: steps {report['parameters']}", flush=True)
        return report


def check_steps(environment: Environment, wheel: Path, sdist: Path | None, kernel: Path) -> None:
    """Take steps with each distribution alone and with the kernel beside it; exit if they are not equal."""
    environment.run("pip", "install", "--quiet", str(wheel))
    reports = {"the wheel": environment.steps("the wheel")}
    environment.run("pip", "install", "--quiet", KERNELS)
    for what in ("the kernel beside the wheel", "the kernel alone"):
        reports[what] = environment.steps(what, "--kernel", str(kernel))
        environment.run("pip", "uninstall", "--quiet", "--yes", NAME)
    if sdist:
        environment.run("pip", "install", "--quiet", str(sdist))
        reports["the sdist"] = environment.steps("the sdist")
    expected = reports["the wheel"]
    print(f"errors: {'; '.join(expected['errors'])}")
    for what, report in reports.items():
        for key in ("parameters", "reference", "errors"):
            if report[key] != expected[key]:
                sys.exit(f"installs: {key} of {what} must be {expected[key]}, got {report[key]}")


def check_without_torch(environment: Environment, wheel: Path, libraries: str) -> None:
    """Install the wheel alone, compile its files and load its library.

    Args:
        libraries: folder of another environment's torch libraries; those of the CPU do not use Python.
    """
    environment.run("pip", "install", "--quiet", "--no-deps", str(wheel))
    package = environment.evaluate(
        f"from importlib.metadata import distribution as d; print(d('{NAME}').locate_file('kradagrad_ext'))"
    )
    environment.run("python", "-m", "compileall", "-q", "-f", package)
    code = "import ctypes, sys; [ctypes.CDLL(path) for path in sys.argv[1:]]"
    paths = [f"{libraries}/libc10.so", f"{libraries}/libtorch_cpu.so", f"{package}/_native.abi3.so"]
    environment.run("python", "-c", code, *paths)
    print(f"Python {environment.version}, without torch: the wheel installs and compiles, its library loads")


def find_python(version: str) -> str | None:
    """Return the command of a Python of this version, on PATH or of pyenv; None if there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(f"python{version}"), *map(str, versions.glob(f"{version}.*/bin/python"))]
    for command in filter(None, candidates):
        done = subprocess.run([command, "-c", "import venv"], capture_output=True)
        if done.returncode == 0:  # a shim of pyenv fails for versions that are not selected
            return command
    return None


if __name__ == "__main__":
    main()
