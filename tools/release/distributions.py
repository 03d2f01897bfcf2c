"""Build the sdist and the wheel into a folder, and check both.

    python tools/release/distributions.py dist

The wheel is built from the sdist, for KRADAGRAD_GLIBC, and named by `auditwheel repair`, which refuses
symbols that a manylinux of that glibc lacks. The other checks are `twine check --strict`,
`check-wheel-contents`, the size, and that the sdist has every file that git tracks.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/distributions"
MOST_BYTES = 25_000_000
TORCH = "libtorch_cpu.so"
"""The library of torch that is loaded before ours, wherever torch is installed."""
NOT_IN_SDIST = re.compile(r"\.ci/.*|\.gitignore")


def main() -> None:
    """Read the command line, build and check."""
    parser = argparse.ArgumentParser(description="Build the sdist and the wheel, and check both.")
    parser.add_argument("folder", type=Path, help="where the two files go; older ones there are removed")
    folder: Path = parser.parse_args().folder.resolve()
    if not os.environ.get("KRADAGRAD_GLIBC"):
        sys.exit("distributions: KRADAGRAD_GLIBC must be a version of glibc such as 2.28, it is not set")
    sdist, wheel = build(folder)
    run("auditwheel", "show", str(wheel))
    run("twine", "check", "--strict", str(sdist), str(wheel))
    run("check-wheel-contents", str(wheel))
    check_size(wheel)
    check_sdist(sdist)
    print(f"{sdist}\n{wheel}")


def build(folder: Path) -> tuple[Path, Path]:
    """Build into a folder, where no other distributions remain, and return the sdist and the wheel."""
    for place in (WORK, folder):
        place.mkdir(parents=True, exist_ok=True)
        for older in (*place.glob("*.whl"), *place.glob("*.tar.gz")):
            older.unlink()
    # Not isolated: the environment has torch, and an isolated build would fetch another.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(WORK), str(ROOT))
    (sdist,), (built,) = WORK.glob("*.tar.gz"), WORK.glob("*.whl")
    tag = f"manylinux_{os.environ['KRADAGRAD_GLIBC'].replace('.', '_')}_{platform.machine()}"
    run(
        "auditwheel",
        "repair",
        "--plat",
        tag,
        "--only-plat",
        "--exclude",
        TORCH,
        "-w",
        str(folder),
        str(built),
    )
    (wheel,) = folder.glob("*.whl")
    return Path(shutil.copy(sdist, folder)), wheel


def run(*command: str) -> None:
    """Run a program, first looked for beside this Python; exit if it fails."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": beside})
    if done.returncode:
        sys.exit(f"distributions: {command[0]} failed, see above")


def check_size(wheel: Path) -> None:
    """Exit with an error if the wheel is too large."""
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f}")
    if size > MOST_BYTES:
        sys.exit(f"distributions: the wheel must have at most {MOST_BYTES} bytes, it has {size}")


def check_sdist(sdist: Path) -> None:
    """Exit with an error if the sdist lacks a tracked file; without git there is nothing to compare with."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        print("no clone of git: the files of the sdist are not compared with it")
        return
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {name for name in listed.stdout.splitlines() if not NOT_IN_SDIST.fullmatch(name)}
    missing = sorted(name for name in tracked - packed if (ROOT / name).exists())
    print(f"{sdist.name}: {len(packed)} entries, {len(missing)} tracked files missing")
    if missing:
        sys.exit(f"distributions: MANIFEST.in must include every tracked file, these are not: {missing}")


if __name__ == "__main__":
    main()
