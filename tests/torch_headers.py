"""Headers of other releases of torch, from their wheels: only those that csrc/ may include, 0.6 MB each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from compiled_module import ROOT, cache_folder

PARTS = ("headeronly/", "csrc/stable/", "csrc/inductor/aoti_torch/")
"""Folders and files of the stable ABI, below torch/include/torch."""

# The headers are the same in every wheel; the one for macOS has 80 MB, those for Linux up to 900.
SMALLEST = ["--platform", "macosx_14_0_arm64", "--python-version", "3.12", "--only-binary", ":all:"]


def include_folder(version: str) -> Path:
    """Return the folder of a release's headers; download its wheel if the folder is missing.

    Headers are kept in KRADAGRAD_CACHE, or in build/ if that is not set.

    Raises:
        RuntimeError: pip could not download the wheel.
    """
    folder = cache_folder("torch-headers") or ROOT / "build/torch-headers"
    target = folder / version
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            extract(download(version, Path(partial)), Path(partial, "include"))
            Path(partial, "include").replace(target)
    return target


def download(version: str, folder: Path) -> Path:
    """Download a wheel of a release and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", *SMALLEST]
    command += ["--retries", "1", "--dest", str(folder), f"torch=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no headers of torch {version}: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("torch-*.whl")
    return wheel


def extract(wheel: Path, folder: Path) -> None:
    """Write the stable ABI's headers from a wheel into a folder."""
    start = "torch/include/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(tuple(f"{start}torch/{part}" for part in PARTS)) and not name.endswith("/"):
                target = folder / name.removeprefix(start)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
