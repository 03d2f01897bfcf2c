"""Run a command under the fake runtime: ``PYTHONPATH=tests python -m fake_cuda [--devices N] pytest ...``.

The command is first searched in the folder of this Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import build


def environment(devices: int, log: Path) -> dict[str, str]:
    """Return the environment of a process under the fake runtime."""
    runtime, package = build.runtime(), build.package()
    paths = [str(package), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "LD_PRELOAD": str(runtime / "libcuda.so.1"),
        "TRITON_LIBCUDA_PATH": str(runtime),
        "FAKE_CUDA_DEVICES": str(devices),
        "FAKE_CUDA_LOG": str(log),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="fake_cuda", description=__doc__)
    parser.add_argument("--devices", type=int, default=2, help="how many GPUs there are")
    parser.add_argument("--log", type=Path, help="where every call is recorded, a line each")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    log = arguments.log or Path(tempfile.mkstemp(suffix=".jsonl", prefix="fake-cuda-")[1])
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(arguments.command[0], path=beside)
    if program is None:
        parser.error(f"there is no command {arguments.command[0]}")
    os.execve(program, [program, *arguments.command[1:]], environment(arguments.devices, log.resolve()))


if __name__ == "__main__":
    main()
