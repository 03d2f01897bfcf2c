"""The distributions of a release: what the library needs of a system, the checks, and the kernel layout.

`make wheel` does all of it with the tools of the extra `release`, and loads the layout with `kernels`.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from release import distributions, hub_kernel, installs

import build_backend
import build_native
import kradagrad_ext
from build_backend import Decision, find_compiler
from kradagrad_ext import build_info

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(kradagrad_ext.__file__).parent
LIBRARY = PACKAGE / "_native.abi3.so"
COMPILER = find_compiler()[0]
BUILD = build_info.read_build_info()

# The newest versions in manylinux_2_28.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}

needs_library = pytest.mark.skipif(BUILD.native == "none", reason=f"no native library here: {BUILD.reason}")


def symbols(path: Path, kind: str, *options: str) -> list[str]:
    """Return the names of a file's symbols of a kind of nm's, with versions."""
    listing = subprocess.run(["nm", *options, str(path)], capture_output=True, text=True, check=True).stdout
    rows = [line.split()[-2:] for line in listing.splitlines() if line.strip()]
    return [name for letter, name in rows if letter in kind]


def newer(symbol: str, *libraries: str) -> bool:
    """Return True if a symbol is of a later version than manylinux_2_28 has, in one of the libraries."""
    match = re.search(r"@(\w+?)_([\d.]+)$", symbol)
    return (
        match is not None
        and match[1] in libraries
        and tuple(map(int, match[2].split("."))) > NEWEST[match[1]]
    )


@needs_library
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_what_older_libraries_lack_is_in_csrc_portable(tmp_path: Path) -> None:
    """The C++ library, and the variable of glibc that its headers read; libm has older versions itself."""
    (source,) = build_native.PORTABLE_SOURCES
    flags = ["-Wall", "-Wextra", "-Werror", "-c", str(ROOT / source), "-o", str(tmp_path / "portable.o")]
    subprocess.run([*COMPILER, *build_native.COMPILE_FLAGS, *flags], check=True)
    defined = set(symbols(tmp_path / "portable.o", "TWB"))
    needed = symbols(LIBRARY, "U", "-D", "--undefined-only")
    lacking = {name.split("@")[0] for name in needed if newer(name, "GLIBCXX", "CXXABI", "GCC")}
    lacking |= {name.split("@")[0] for name in needed if name.startswith("__libc_single_threaded@")}
    assert lacking <= defined


def test_versions_are_compared_by_number() -> None:
    assert newer("f@GLIBCXX_3.4.26", "GLIBCXX")
    assert not newer("f@GLIBCXX_3.4.9", "GLIBCXX")
    assert not newer("f@GLIBCXX_3.4.26", "CXXABI")
    assert not newer("aoti_torch_f", "GLIBC")


@pytest.mark.parametrize("wrong", ["2_28", "glibc", "3.0", "2."])
def test_a_version_of_glibc_that_is_none_ends_the_build(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRADAGRAD_GLIBC", wrong)
    with pytest.raises(SystemExit, match=rf"KRADAGRAD_GLIBC must be a version .* got '{re.escape(wrong)}'"):
        build_backend.oldest_glibc()


def test_glibc_changes_the_link_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision("cpu", ("c++",), None, None)
    monkeypatch.delenv("KRADAGRAD_GLIBC", raising=False)
    ordinary = build_native.sources(decision), build_native.compilers_of(decision, "include", "2.13.0")
    monkeypatch.setenv("KRADAGRAD_GLIBC", "2.28")
    assert build_native.sources(decision) == [*ordinary[0], *build_native.PORTABLE_SOURCES]
    assert build_native.compilers_of(decision, "include", "2.13.0") == ordinary[1]
    command = build_native.portable_linker("2.28")
    assert command[command.index("-target") + 1].endswith("-linux-gnu.2.28")
    assert f"-Wl,--version-script={build_native.EXPORTS}" in command
    assert (ROOT / build_native.EXPORTS).exists()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_libraries_of_the_compiler_are_linked() -> None:
    """With zig's table of the CPU's features, GCC's code would choose the slowest clone of each hot loop."""
    paths = [Path(word) for word in build_native.portable_libraries(COMPILER) if not word.startswith("-")]
    assert [path.name for path in paths] == ["libstdc++.so", "libgcc.a", "libgcc_s.so.1"]
    assert all(path.is_absolute() and path.exists() for path in paths)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_linker_is_a_build_requirement_only_with_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRADAGRAD_BUILD", "cpu")
    monkeypatch.delenv("KRADAGRAD_GLIBC", raising=False)
    assert build_backend.ZIG not in build_backend.get_requires_for_build_wheel()
    monkeypatch.setenv("KRADAGRAD_GLIBC", "2.28")
    assert build_backend.ZIG in build_backend.get_requires_for_build_wheel()
    extra = re.search(r"^release = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None
    assert f'"{build_backend.ZIG}"' in extra[1]


def test_a_large_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"x" * 10)
    monkeypatch.setattr(distributions, "MOST_BYTES", 10)
    distributions.check_size(wheel)
    wheel.write_bytes(b"x" * 11)
    with pytest.raises(SystemExit, match="at most 10 bytes, it has 11"):
        distributions.check_size(wheel)


def test_an_sdist_without_a_tracked_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["init", "-q"], ["add", "setup.py", "csrc", ".ci"]):
        for name in ("setup.py", "csrc/ops.cpp", ".ci/run"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(distributions, "ROOT", tmp_path)
    sdist = tmp_path / "some-1.tar.gz"

    def pack(*names: str) -> Path:
        with tarfile.open(sdist, "w:gz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(f"some-1/{name}"), io.BytesIO())
        return sdist

    distributions.check_sdist(pack("setup.py", "csrc/ops.cpp"))
    with pytest.raises(SystemExit, match=r"these are not: \['csrc/ops\.cpp'\]"):
        distributions.check_sdist(pack("setup.py"))


def test_distributions_are_only_built_for_a_glibc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    monkeypatch.delenv("KRADAGRAD_GLIBC", raising=False)
    monkeypatch.setattr(sys, "argv", ["distributions.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="KRADAGRAD_GLIBC must be a version of glibc"):
        distributions.main()
    assert kept.exists()


def test_pythons_are_found_by_version() -> None:
    version = "{}.{}".format(*sys.version_info)
    if (found := installs.find_python(version)) is not None:  # this one may have another name
        printed = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        assert printed.startswith(f"Python {version}.")
    assert installs.find_python("2.0") is None


def test_a_python_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for python in ("2.0", "no-such-python"):
        monkeypatch.setattr(sys, "argv", ["installs.py", str(tmp_path), str(tmp_path), "--python", python])
        with pytest.raises(SystemExit, match=f"must be a Python of this machine, got {python}"):
            installs.main()


def make_wheel(folder: Path, change: Callable[[dict[str, bytes]], None] = lambda files: None) -> Path:
    """Write the package of this environment as a wheel, with changes."""
    names = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(PACKAGE).as_posix(): path.read_bytes() for path in names}
    change(files)
    wheel = folder / "kradagrad_ext-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {"": b"", **files}.items():
            archive.writestr(f"kradagrad_ext/{name}", content)
    return wheel


AS_KERNELS_IMPORTS = """
import importlib.util, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import steps, torch
import kradagrad_ext

torch.set_num_threads(1)
installed = steps.steps(kradagrad_ext, "native")
variant = Path(sys.argv[1])
name = json.loads((variant / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
reasons = sys.modules[f"{name}.backends"].available_backends(torch.device("cpu"))
same = steps.steps(module, "native" if reasons["native"] is None else "reference") == installed
print(json.dumps([reasons["native"], same, module.KrADagrad is kradagrad_ext.KrADagrad]))
"""
"""Take steps with the installed package and with a kernel that is imported by its id, in one process."""


def import_beside(variant: Path) -> list[object]:
    """Return the reason against the kernel's native backend, whether its steps are equal, and its class."""
    command = [sys.executable, "-W", "ignore", "-c", AS_KERNELS_IMPORTS, str(variant)]
    result = subprocess.run([*command, str(ROOT / "tools/release")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answer: list[object] = json.loads(result.stdout)
    return answer


@needs_library
def test_a_kernel_takes_the_steps_of_the_installed_package(tmp_path: Path) -> None:
    variants = hub_kernel.write_repository(make_wheel(tmp_path), tmp_path)
    assert variants[0].name == "torch-stable-abi210-cpu-x86_64-linux"
    assert import_beside(variants[0]) == [None, True, False]
    metadata = json.loads((variants[0] / "metadata.json").read_text())
    files = {path.relative_to(variants[0]).as_posix() for path in variants[0].rglob("*.*")}
    files = {name for name in files if not name.endswith(".pyc")} - {"metadata.json"}
    assert set(metadata["digest"]["files"]) == files
    assert {"_native.abi3.so", "_build.json", "py.typed", "backends/native.py"} < files


@needs_library
def test_a_kernel_with_another_library_does_not_use_the_loaded_one(tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["_native.abi3.so"] = b"another build"

    (variant, *_) = hub_kernel.write_repository(make_wheel(tmp_path, change), tmp_path)
    reason, same, _ = import_beside(variant)
    assert reason == f"another build of _native.abi3.so is loaded: {LIBRARY.resolve()}"
    assert not same


def test_a_build_with_cuda_has_a_variant_for_it(tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["_native.abi3.so"] = b"a library"
        record = {"requested": "cuda", "native": "cuda", "nvcc": "release 13.0, V13.0.88"}
        files["_build.json"] = json.dumps({**record, "architectures": "8.0;9.0+PTX"}).encode()

    variants = hub_kernel.write_repository(make_wheel(tmp_path, change), tmp_path)
    assert [path.name.split("-")[3] for path in variants] == ["cpu", "cu126", "cu130"]
    metadata = [json.loads((path / "metadata.json").read_text()) for path in variants]
    assert metadata[1]["backend"] == metadata[2]["backend"] == {"type": "cuda", "archs": ["8.0", "9.0+PTX"]}
    assert metadata[0]["digest"] == metadata[1]["digest"]
    assert metadata[0]["id"] != metadata[1]["id"]
    assert all(one["id"].isidentifier() for one in metadata)


def test_a_wheel_without_a_library_is_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"must be a wheel for Linux .* got kradagrad_ext-0\.1\.0-py3-none-any"
    ):
        hub_kernel.write_repository(tmp_path / "kradagrad_ext-0.1.0-py3-none-any.whl", tmp_path)


def test_imports_become_relative() -> None:
    source = "import torch\nfrom kradagrad_ext import polar\nfrom kradagrad_ext.state import State\n"
    made = hub_kernel.with_relative_imports(source, "step.py")
    assert made == "import torch\nfrom . import polar\nfrom .state import State\n"
    made = hub_kernel.with_relative_imports(source, "backends/native.py")
    assert made == "import torch\nfrom .. import polar\nfrom ..state import State\n"
    with pytest.raises(SystemExit, match=r"step\.py, line 1: only `from kradagrad_ext"):
        hub_kernel.with_relative_imports("import kradagrad_ext.state\n", "step.py")


def test_the_layout_and_the_build_name_the_same_torch() -> None:
    target = re.search(r"0x([0-9a-f]{2})([0-9a-f]{2})0{12}$", build_native.TORCH_TARGET)
    assert target is not None
    version = f"{int(target[1], 16)}{int(target[2], 16)}"
    assert hub_kernel.STABLE_ABI.removeprefix("torch-stable-abi") == version
