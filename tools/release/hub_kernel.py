"""Lay out a wheel as a kernel repository of Hugging Face's hub, for the loaders of the package `kernels`.

    python tools/release/hub_kernel.py dist build/hub-kernel

The library of the wheel is used as it is. ``build/`` gets a variant for each kind of torch that it serves,
named after the stable ABI of torch 2.10: ``torch-stable-abi210-cpu-x86_64-linux`` for CPU builds of torch,
and one for each CUDA. A variant is the package with relative imports, since its loader chooses its name.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

PACKAGE = "kradagrad_ext"
STABLE_ABI = "torch-stable-abi210"
"""The oldest torch whose stable ABI the library needs, as in build_native.py's TORCH_TARGET."""
OLDEST_CUDA = "cu126"
"""The oldest CUDA of torch 2.10; for `kernels`, a variant serves later minor releases of its CUDA too.

The library brings its CUDA runtime along, so that torch's may be of another major release.
"""
VERSION = 0
"""The kernel's version on the hub, where 0 is for those whose interface may still change."""
ABSOLUTE_IMPORT = re.compile(rf"^(\s*)from {PACKAGE}((?:\.\w+)*) import ", re.MULTILINE)


def main() -> None:
    """Read the command line and write the repository."""
    parser = argparse.ArgumentParser(description="Lay out a wheel as a kernel repository.")
    parser.add_argument("dist", type=Path, help="a folder with one wheel, which has the native library")
    parser.add_argument("folder", type=Path, help="the repository, whose build/ is replaced")
    options = parser.parse_args()
    (wheel,) = options.dist.glob("*.whl")
    for variant in write_repository(wheel, options.folder):
        print(variant)


def write_repository(wheel: Path, folder: Path) -> list[Path]:
    """Write the variants of a wheel below ``folder/build`` and return their folders.

    Exits with an error if the wheel has no native library or is not for Linux.
    """
    machine = re.search(r"linux(?:_\d+_\d+)?_([a-z]\w*)\.whl$", wheel.name)
    if machine is None:
        sys.exit(f"hub_kernel: `wheel` must be a wheel for Linux with the native library, got {wheel.name}")
    files = package_files(wheel)
    record = json.loads(files["_build.json"])
    shutil.rmtree(folder / "build", ignore_errors=True)
    variants: list[tuple[str, dict[str, object]]] = [("cpu", {"type": "cpu"})]
    if record["native"] == "cuda":
        cuda = re.search(r"release (\d+)\.(\d+)", record["nvcc"])
        if cuda is None:
            sys.exit(
                f"hub_kernel: the record of the build must name a release of nvcc, got {record['nvcc']!r}"
            )
        architectures = record["architectures"].split(";")
        for release in (OLDEST_CUDA, f"cu{cuda[1]}{cuda[2]}"):
            variants.append((release, {"type": "cuda", "archs": architectures}))
    return [
        write_variant(files, folder / f"build/{STABLE_ABI}-{name}-{machine[1]}-linux", backend)
        for name, backend in variants
    ]


def package_files(wheel: Path) -> dict[str, bytes]:
    """Return the package's files by their path in it, with relative imports."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/") and name[-1] != "/"]
        files = {name.removeprefix(f"{PACKAGE}/"): archive.read(name) for name in names}
    for name in [name for name in files if name.endswith(".py")]:
        files[name] = with_relative_imports(files[name].decode(), name).encode()
    return files


def with_relative_imports(source: str, name: str) -> str:
    """Return a module's source with relative imports in place of those that name the package.

    Args:
        name: path of the module in the package.
    """
    dots = "." * (name.count("/") + 1)
    source = ABSOLUTE_IMPORT.sub(lambda match: f"{match[1]}from {dots}{match[2][1:]} import ", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        if any(module.split(".")[0] == PACKAGE for module in modules):
            sys.exit(
                f"hub_kernel: {name}, line {node.lineno}: only `from {PACKAGE}... import` can be relative"
            )
    return source


def write_variant(files: dict[str, bytes], folder: Path, backend: dict[str, object]) -> Path:
    """Write the files of a variant and its metadata.json, and return its folder."""
    digests = {name: hashlib.sha256(content).digest() for name, content in sorted(files.items())}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    unique = hashlib.sha256(b"".join(digests.values())).hexdigest()[:8]
    metadata = {
        "id": f"_{PACKAGE}_{backend['type']}_{unique}",
        "name": PACKAGE.replace("_", "-"),
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": backend,
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(digest).decode() for name, digest in digests.items()},
        },
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return folder


if __name__ == "__main__":
    main()
