"""Importable kradagrad_ext and bench without an installation: the tree's Python files, a prebuilt library.

    python -m bench.gpu.check.package .gpu-bundle      # build for TORCH_CUDA_ARCH_LIST, by default 9.0

A bundle is a small folder to copy to the machine with the GPU: the native library, the record of its build,
and a digest of its sources. If it is missing or of other sources, the library is built on that machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARY, BUILD, MANIFEST = "_native.abi3.so", "_build.json", "bundle.json"
ARCHITECTURES = "9.0"
BUILD_FILES = ("build_native.py", "build_backend.py", "compile_cached.py", "ninja_rules.py", "setup.py")


class PackageError(Exception):
    """A bundle that cannot be used, or a build that failed; the message has the reason."""


def digest(root: Path = ROOT) -> str:
    """Hash all sources of the native library."""
    digest = hashlib.sha256()
    paths = [*(root / name for name in BUILD_FILES), *(root / "csrc").rglob("*")]
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def git_sha(root: Path = ROOT) -> str:
    """Return the commit, with a + if the tree has changes; empty if the tree is not a repository."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    done = _run(command, root) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else ""


def bundled_sha(bundle: Path, root: Path = ROOT) -> str:
    """Return the commit that a bundle was built from, for a tree that was copied without its repository."""
    try:
        return check(bundle, root)["git_sha"]
    except PackageError:
        return "unknown"


def build(
    python: str,
    bundle: Path,
    root: Path = ROOT,
    started: Callable[[subprocess.Popen[str]], object] = lambda process: None,
) -> None:
    """Build the library with its kernels into a bundle, without a network. Raise PackageError if it fails.

    `started` gets the process, so that another thread can `end` it.
    """
    environment = {
        **os.environ,
        "KRADAGRAD_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES,
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-build-isolation", "--no-compile", "--upgrade", "--target", folder]
        command = [python, "-m", "pip", "install", "-v", *options, str(root)]
        process = subprocess.Popen(
            command, cwd=root, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            started(process)
            output, _ = process.communicate()
        finally:
            end(process)
        if process.returncode:
            raise PackageError(f"the build failed:\n{output[-8000:]}")
        built = Path(folder, "kradagrad_ext")
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(parents=True)
        for name in (LIBRARY, BUILD):
            shutil.copy2(built / name, bundle / name)
    manifest = {
        "digest": digest(root),
        "git_sha": git_sha(root),
        "architectures": environment["TORCH_CUDA_ARCH_LIST"],
        "library": _file_digest(bundle / LIBRARY),
    }
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def end(process: subprocess.Popen[str]) -> None:
    """End a build with all its compilers, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def check(bundle: Path, root: Path = ROOT) -> dict[str, str]:
    """Return a bundle's manifest. Raise PackageError if it is missing, damaged or of other sources."""
    try:
        manifest: dict[str, str] = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        library = _file_digest(bundle / LIBRARY)
    except (OSError, ValueError) as error:
        raise PackageError(f"no bundle in {bundle.name}: {error}") from error
    if library != manifest.get("library"):
        raise PackageError(f"the library in {bundle.name} is damaged")
    if manifest.get("digest") != digest(root):
        raise PackageError(f"the library in {bundle.name} was built from other sources: make gpu-bundle")
    return manifest


def installed(kind: str, root: Path = ROOT) -> dict[str, str]:
    """Return the build record of the library that an editable installation left in the tree.

    Raise PackageError if there is no library, or none with CUDA kernels for the `kind` cuda.
    """
    place = root / "kradagrad_ext"
    try:
        record: dict[str, str] = json.loads((place / BUILD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError("no library in the tree: it has no editable installation") from error
    if not (place / LIBRARY).exists() or kind not in (record.get("native"), "cpu"):
        raise PackageError(f"the library in the tree supports only {record.get('native')}")
    return record


def lay_out(folder: Path, root: Path = ROOT, with_package: bool = True) -> None:
    """Make the workers' folder for PYTHONPATH: bench, and the package except for its native library.

    Workers cannot import bench from the tree, because they would find the tree's package there as well.
    """
    package = folder / "kradagrad_ext"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", BUILD, "results")
    shutil.copytree(root / "bench", folder / "bench", ignore=ignored)
    if not with_package:
        return
    shutil.copytree(root / "kradagrad_ext", package, ignore=ignored)
    shutil.copytree(root / "triton_kernels", package / "triton_kernels", ignore=ignored)


def put_library(folder: Path, place: Path) -> None:
    """Copy the library and the record of its build from another folder into a laid out package."""
    for name in (LIBRARY, BUILD):
        partial = folder / "kradagrad_ext" / f"{name}.partial"
        shutil.copy2(place / name, partial)
        partial.replace(folder / "kradagrad_ext" / name)


def take_library(folder: Path) -> None:
    """Remove the library and its record from a laid out package."""
    for name in (LIBRARY, BUILD):
        (folder / "kradagrad_ext" / name).unlink(missing_ok=True)


def loads(python: str, folder: Path, environment: dict[str, str]) -> str | None:
    """Return why the native backend of a laid out package does not run on the CPU; None if it does."""
    code = (
        "import torch; from kradagrad_ext.backends import available_backends; "
        "print(available_backends(torch.device('cpu'))['native'])"
    )
    environment = {**environment, "PYTHONPATH": str(folder)}
    with tempfile.TemporaryDirectory() as empty:  # so that the tree's package is not imported
        done = _run([python, "-c", code], Path(empty), environment)
    reason = done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-300:]
    return None if reason == "None" else reason


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="folder, relative to the repository's root")
    bundle: Path = ROOT / parser.parse_args().bundle
    try:
        build(sys.executable, bundle)
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in bundle.iterdir())
    print(f"{bundle.name}: {size / 2**20:.1f} MiB, {json.dumps(check(bundle))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
