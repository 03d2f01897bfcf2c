"""Time to build the CPU extension from a clean checkout of the committed sources."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def build_seconds() -> float | None:
    """Seconds of a wheel's build in an empty folder, in this environment; None outside a git checkout.

    Raises:
        RuntimeError: the build failed; the message ends with what it printed last.
    """
    if not (REPOSITORY / ".git").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "sources.tar")
        subprocess.run(["git", "archive", "-o", archive, "HEAD"], cwd=REPOSITORY, check=True)
        with tarfile.open(archive) as sources:
            sources.extractall(Path(folder, "checkout"), filter="data")
        options = ["--no-build-isolation", "--no-deps", "--wheel-dir", folder]
        command = [sys.executable, "-m", "pip", "wheel", *options, str(Path(folder, "checkout"))]
        start = time.perf_counter()
        build = subprocess.run(
            command, env=dict(os.environ, KRADAGRAD_BUILD="cpu"), capture_output=True, text=True
        )
        elapsed = time.perf_counter() - start
    if build.returncode:
        raise RuntimeError(f"building the extension failed: {(build.stdout + build.stderr)[-2000:]}")
    return elapsed


if __name__ == "__main__":
    print(f"{build_seconds():.1f} s")
