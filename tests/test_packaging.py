"""The installed package, the libraries that its native library links to, and builds by KRADAGRAD_BUILD."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import kradagrad_ext
from kradagrad_ext import build_info

ROOT = Path(__file__).parent.parent
LIBRARY = Path(kradagrad_ext.__file__).parent / "_native.abi3.so"
IN_TREE = (
    "setup.py",
    "build_backend.py",
    "build_native.py",
    "compile_cached.py",
    "ninja_rules.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "NOTICE",
)

BUILD = build_info.read_build_info()

needs_library = pytest.mark.skipif(BUILD.native == "none", reason=f"no native library here: {BUILD.reason}")


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources whose native library is csrc/ops.cpp alone: it builds in seconds."""
    for name in IN_TREE:
        shutil.copy(ROOT / name, tmp_path / name)
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("kradagrad_ext", "triton_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    (tmp_path / "csrc").mkdir()
    shutil.copy(ROOT / "csrc/ops.cpp", tmp_path / "csrc/ops.cpp")
    return tmp_path


def call_backend(tree, expression, **environment):
    """Evaluate an expression of the build backend in a new process, as build front ends do."""
    code = f"import build_backend; print('value:', build_backend.{expression})"
    variables = {name: value for name, value in os.environ.items() if name not in ("CXX", "KRADAGRAD_BUILD")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tree, env=variables | environment, capture_output=True, text=True)


def value(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].removeprefix("value: ")


def test_version_is_the_projects():
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert metadata.version("kradagrad-ext") == kradagrad_ext.__version__ == declared.group(1)
    assert f"version: {declared.group(1)}\n" in (ROOT / "CITATION.cff").read_text()


def test_triton_kernels_are_inside_the_package(tmp_path):
    code = "import kradagrad_ext.triton_kernels as kernels; print(kernels.__name__)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == "kradagrad_ext.triton_kernels", result.stderr


def test_package_is_typed():
    assert (LIBRARY.parent / "py.typed").exists()


def test_library_is_there_exactly_when_the_build_says_so():
    assert LIBRARY.exists() == (BUILD.native != "none")


@needs_library
def test_library_needs_the_stable_abi_alone():
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    )
    symbols = [line.split()[-1] for line in listing.stdout.splitlines() if line.split()[0] == "U"]
    system = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
    foreign = [name for name in symbols if not system.match(name)]
    assert any(name.startswith("aoti_torch_") for name in foreign)
    assert [name for name in foreign if not name.startswith(("aoti_torch_", "torch_"))] == []


@needs_library
def test_library_links_neither_python_nor_torch_python():
    listing = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", listing.stdout))
    assert "libtorch_cpu.so" in needed
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    # CUDA's runtime is linked statically and needs no more than the system's loader and threads.
    system |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libdl.so.2", "librt.so.1", "libpthread.so.0"}
    assert needed - system == {"libtorch_cpu.so"}


def test_auto_without_a_compiler_builds_the_python_package_and_says_so_once(tree):
    result = call_backend(tree, "build_wheel('dist')", CXX="no-such-compiler")
    assert value(result) == f"kradagrad_ext-{kradagrad_ext.__version__}-py3-none-any.whl"
    output = result.stdout + result.stderr
    assert output.count("installing kradagrad_ext without its native library") == 1
    assert "no C++ compiler was found (looked for CXX=no-such-compiler)" in output


def test_none_builds_the_python_package_whatever_compiler_there_is(tree):
    name = value(call_backend(tree, "build_wheel('dist')", KRADAGRAD_BUILD="none"))
    assert name.endswith("-py3-none-any.whl")
    files = zipfile.ZipFile(tree / "dist" / name).namelist()
    assert "kradagrad_ext/triton_kernels/__init__.py" in files
    assert "kradagrad_ext/triton_kernels/plan/launch.py" in files
    assert "kradagrad_ext/triton_kernels/plan/tuning.csv" in files
    assert "kradagrad_ext/py.typed" in files
    assert not [file for file in files if file.endswith(".so")]
    assert {file.split("/")[0] for file in files} == {"kradagrad_ext", f"{name.split('-py3')[0]}.dist-info"}


@needs_library
def test_cpu_builds_one_wheel_for_every_python(tree):
    name = value(call_backend(tree, "build_wheel('dist')", KRADAGRAD_BUILD="cpu"))
    assert "-cp310-abi3-" in name
    assert "kradagrad_ext/_native.abi3.so" in zipfile.ZipFile(tree / "dist" / name).namelist()


@needs_library
def test_library_names_no_folder_of_its_sources():
    """Objects are the same in every clone, and may have been compiled in another one."""
    content = LIBRARY.read_bytes()
    assert b"csrc/cpu/" in content  # in messages of failed checks
    assert str(ROOT).encode() not in content


def test_source_distribution_has_what_builds_it(tree):
    name = value(call_backend(tree, "build_sdist('dist')"))
    with tarfile.open(tree / "dist" / name) as archive:
        files = {file.split("/", 1)[-1] for file in archive.getnames()}
    assert {path.name for path in ROOT.glob("*.py")} < files


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"KRADAGRAD_BUILD": "fast"}, "KRADAGRAD_BUILD=fast: must be one of auto, cuda, cpu, none"),
        (
            {"KRADAGRAD_BUILD": "cuda", "CXX": "no-such-compiler"},
            "KRADAGRAD_BUILD=cuda: no C++ compiler found (looked for CXX=no-such-compiler)",
        ),
        (
            {"KRADAGRAD_BUILD": "cpu", "CXX": "no-such-compiler"},
            "KRADAGRAD_BUILD=cpu: no C++ compiler found (looked for CXX=no-such-compiler)",
        ),
        (
            {"KRADAGRAD_BUILD": "cpu", "PATH": "/nowhere"},
            "KRADAGRAD_BUILD=cpu: no C++ compiler found (looked for c++, g++, clang++ on PATH)",
        ),
    ],
)
def test_a_build_that_cannot_be_met_ends_with_an_error(tree, environment, message):
    result = call_backend(tree, "build_wheel('dist')", **environment)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failing_compiler_ends_with_an_error(tree):
    result = call_backend(tree, "build_wheel('dist')", KRADAGRAD_BUILD="cpu", CXX="false")
    assert result.returncode == 1
    assert "KRADAGRAD_BUILD=none installs the package without it" in result.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="no c++ on PATH")
def test_torch_is_a_build_requirement_only_where_it_is_missing(tree):
    requires = "get_requires_for_build_wheel()"
    assert value(call_backend(tree, requires)) == "['ninja']"
    assert value(call_backend(tree, requires, KRADAGRAD_BUILD="none")) == "[]"
    hidden = "find_torch.__globals__.update(find_torch=lambda: None) or build_backend."
    assert "torch>=2.10" in value(call_backend(tree, hidden + requires))
    assert "torch" not in value(call_backend(tree, hidden + requires, KRADAGRAD_BUILD="none"))


def test_cuda_without_nvcc_ends_with_an_error(tree):
    hidden = "find_torch.__globals__.update(find_nvcc=lambda: None) or build_backend."
    result = call_backend(tree, hidden + "decide()", KRADAGRAD_BUILD="cuda")
    assert result.returncode == 1
    assert "KRADAGRAD_BUILD=cuda: no nvcc found" in result.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="no c++ on PATH")
@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "native"), [(0, 0, "cpu"), (0, 1, "cpu"), (1, 0, "cpu"), (1, 1, "cuda")]
)
def test_auto_builds_kernels_for_a_torch_with_cuda_where_there_is_nvcc(tree, torch_cuda, nvcc, native):
    probes = f"torch_has_cuda=lambda: {bool(torch_cuda)}, find_nvcc=lambda: {('nvcc',) if nvcc else None}"
    expression = f"find_torch.__globals__.update({probes}) or build_backend.decide().native"
    assert value(call_backend(tree, expression, KRADAGRAD_BUILD="auto")) == native


@pytest.mark.parametrize(
    ("version", "expected"), [("cuda: Optional[str] = '13.0'", True), ("cuda = None", False)]
)
def test_a_torch_with_cuda_is_known_by_its_version_file(tree, version, expected):
    (tree / "torch").mkdir()
    (tree / "torch/version.py").write_text(f"__version__ = '2.13.0'\n{version}\n")
    fake = "find_torch=lambda: type('Fake', (), {'locate_file': staticmethod(lambda name: name)})"
    expression = f"find_nvcc.__globals__.update({fake}) or build_backend.torch_has_cuda()"
    assert value(call_backend(tree, expression)) == str(expected)


@pytest.mark.parametrize("wrong", ["Hopper", "7.5", "8.0;", "9.0+SASS"])
def test_architectures_are_in_torchs_notation(tree, wrong):
    code = "import build_native; print('value:', build_native.architecture_flags())"
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "8.0;9.0a+PTX"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    codes = ["sm_80", "sm_90", "compute_80"]
    assert value(result) == str([f"-gencode=arch=compute_80,code={code}" for code in codes])
    environment["TORCH_CUDA_ARCH_LIST"] = wrong
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "TORCH_CUDA_ARCH_LIST must be like" in result.stderr
