"""The project's structure: which files may import or include which, and how long files are."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kradagrad_ext"

# What each module of the package may import from the package. A new module gets a line here.
MAY_IMPORT = {
    "": {"cost", "diagnostics", "grouping", "optimizer", "published"},
    "cost": {
        "config",
        "cost.estimate",
        "cost.parameters",
        "cost.state",
        "cost.time_model",
        "cost.traffic",
        "cost.work",
        "distributed.partition",
    },
    "cost.__main__": {"config", "cost", "cost.models", "cost.parameters", "cost.time_model"},
    "cost.estimate": {"tables", "cost.state", "cost.time_model", "cost.work"},
    "cost.state": {"blocking", "state", "cost.parameters", "distributed.partition"},
    "cost.traffic": {"cost.parameters", "cost.work", "distributed.partition"},
    "cost.work": {
        "blocking",
        "config",
        "roots",
        "schedule",
        "state",
        "backends.base",
        "backends.scalars",
        "cost.parameters",
    },
    "cost.parameters": {"blocking", "config", "group_options", "optimizer"},
    "cost.models": {"blocking"},
    "cost.time_model": {"cost.work", "cost.time_model.gpus", "cost.time_model.kernel_work"},
    "cost.time_model.gpus": {"cost.time_model.kernel_work"},
    "cost.time_model.kernel_work": set(),
    "grouping": {"tables"},
    "tables": set(),
    "optimizer": {
        "blocking",
        "checkpoint",
        "config",
        "coverage",
        "engine",
        "group_options",
        "step",
        "whole_steps",
        "distributed.engine",
    },
    "group_options": {"config"},
    "coverage": {"blocking", "config"},
    "whole_steps": set(),
    "published": {"config", "coverage", "full_precision", "state"},
    "engine": {"blocking", "config", "full_precision", "param_batch", "state", "step", "whole_steps"},
    "full_precision": set(),
    "distributed": set(),
    "distributed.engine": {
        "full_precision",
        "state",
        "step",
        "whole_steps",
        "distributed.placement",
        "distributed.rank_states",
        "distributed.sharded_params",
        "distributed.sharded_state",
    },
    "distributed.sharded_params": {
        "block_layout",
        "blocking",
        "config",
        "norms",
        "param_batch",
        "state",
        "step",
        "uploads",
        "distributed.collectives",
        "distributed.owned",
        "distributed.partition",
        "distributed.placement",
        "distributed.rank_states",
    },
    "distributed.rank_states": {
        "blocking",
        "state",
        "distributed.owned",
        "distributed.placement",
        "distributed.sharded_state",
    },
    "distributed.sharded_state": {"blocking", "state", "distributed.partition"},
    "distributed.owned": {
        "block_layout",
        "blocking",
        "config",
        "param_batch",
        "state",
        "step",
        "backends.scalars",
        "distributed.collectives",
        "distributed.partition",
        "distributed.placement",
        "distributed.sharded_state",
    },
    "distributed.placement": {"distributed.partition"},
    "distributed.collectives": {"param_batch"},
    "distributed.partition": {"blocking", "config"},
    "step": {
        "backends",
        "block_layout",
        "config",
        "packed",
        "param_batch",
        "preconditioner",
        "schedule",
        "side_stream",
        "state",
        "backends.base",
        "backends.scalars",
    },
    "packed": {"blocking", "config", "linalg", "preconditioner", "state", "backends.base"},
    "schedule": {"config", "backends.base"},
    "linalg": set(),
    "block_views": set(),
    "block_layout": {"blocking"},
    "decomposed_roots": {"linalg"},
    "polar": {"decomposed_roots", "linalg", "backends.base"},
    "preconditioner": {
        "block_views",
        "blocking",
        "config",
        "polar",
        "roots",
        "schedule",
        "side_stream",
        "state",
        "backends.base",
    },
    "side_stream": set(),
    "checkpoint": {"backends", "blocking", "config", "linalg", "param_batch", "state"},
    "diagnostics": {"linalg", "polar", "state", "backends.base", "backends.scalars"},
    "param_batch": {
        "block_layout",
        "blocking",
        "config",
        "norms",
        "roots",
        "state",
        "uploads",
        "backends.base",
        "backends.scalars",
    },
    "state": {"block_layout", "blocking", "config", "linalg", "backends.base", "backends.scalars"},
    "norms": set(),
    "uploads": set(),
    "blocking": {"config"},
    "roots": {"decomposed_roots", "linalg", "polar", "backends.base"},
    "config": {"polar", "backends.base", "backends.scalars"},
    "build_info": set(),
    "env_report": {"backends", "build_info"},
    "backends": {"build_info", "backends.base"},
    "backends.base": {"backends.scalars"},
    "backends.scalars": set(),
    "backends.square_root": {"block_views", "linalg", "backends.base"},
    "backends.square_root_triton": {"backends.arguments", "backends.base", "backends.square_root"},
    "backends.reference": {"decomposed_roots", "polar", "backends.scalars", "backends.square_root"},
    "backends.native": {
        "build_info",
        "decomposed_roots",
        "polar",
        "backends.base",
        "backends.scalars",
        "backends.square_root",
    },
    "backends.arguments": set(),
    "backends.triton": {
        "decomposed_roots",
        "polar",
        "backends.arguments",
        "backends.base",
        "backends.native",
        "backends.scalars",
        "backends.square_root_triton",
    },
}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 40

# Exceptions, each with the reason why it is not split.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS = {
    "kradagrad_ext/optimizer.py:__init__": "all but a few lines are the options and their defaults",
    "triton_kernels/update_moments.py:update_moments": "half of it is a kernel's arguments",
    "triton_kernels/apply_updates.py:apply_updates": "half of it is a kernel's arguments",
    "triton_kernels/square_root_resident.py:square_root_resident": "half of it is a kernel's arguments",
    "bench/gpu/check/options.py:parser": "all of it are options and their help texts",
    "examples/gpt/options.py:make_parser": "all of it are options and their help texts",
    "tools/ptx_executor/tests/test_memory.py:test_atomics": "all but a few lines are PTX",
}

PYTHON_FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")])
SOURCE_FILES = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
)
PLAN = ROOT / "triton_kernels/plan"
TOOLS = sorted(path for path in (ROOT / "tools").rglob("*") if path.suffix in {".py", ".cpp", ".h"})
BUILD_FILES = sorted(ROOT.glob("*.py"))

# What each folder of bench imports from bench beside its own modules, from the bottom up; "" is bench itself.
BENCH_IMPORTS = {
    "": set(),
    "roofline": set(),
    "ops": {""},
    "steps": {"", "ops"},
    "gpu": set(),
    "gpu.check": {"", "roofline"},
    "gpu.kernels": {"", "roofline"},
    "arena.tasks": {""},
    "arena": {"", "arena.tasks", "steps"},
    "tuning": {"", "arena", "arena.tasks", "gpu.check"},
    "experiments": {""},
    "experiments.autoencoders": {"", "arena", "arena.tasks", "experiments"},
}

# Folders of bench that import modules of tests or examples. Each extends sys.path, for its subfolders, too.
BENCH_HELPERS = {
    "gpu.kernels": {"tests", "tools"},
    "arena": {"examples"},
    "arena.tasks": {"examples"},
    "tuning": {"examples"},
}

# Scripts of tools that run where a distribution is installed, and what they import there.
ON_INSTALLATIONS = {"tools/release/steps.py": {"kernels", "kradagrad_ext", "torch"}}

OUTSIDE = ("bench", "docs", "tests", "examples", "tools")
OUTSIDE_FILES = sorted(path for folder in OUTSIDE for path in (ROOT / folder).rglob("*.py"))
"""Files that are not installed."""


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    """Return the dotted name below kradagrad_ext; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Yield the absolute name of everything that a file imports, at any depth of its code."""
    package = ["kradagrad_ext", *path.relative_to(PACKAGE).parent.parts] if PACKAGE in path.parents else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` names a module only if there is such a file.
            folder = ROOT / source.replace(".", "/")
            yield from (
                f"{source}.{alias.name}" if (folder / f"{alias.name}.py").exists() else source
                for alias in node.names
            )


def test_modules_import_only_what_they_may():
    """Every module has a line in MAY_IMPORT, and every line has a module."""
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    assert modules.keys() == MAY_IMPORT.keys()
    forbidden = {}
    for name, path in modules.items():
        inner = {other for other in imported_modules(path) if other.split(".")[0] == "kradagrad_ext"}
        imported = {other.removeprefix("kradagrad_ext").removeprefix(".") for other in inner}
        forbidden[name] = imported - MAY_IMPORT[name]
    assert {name: imported for name, imported in forbidden.items() if imported} == {}


def test_triton_kernels_import_torch_and_triton_only():
    paths = sorted((ROOT / "triton_kernels").rglob("*.py"))
    allowed = {"torch", "triton", "", *(path.stem for path in paths), *sys.stdlib_module_names}
    foreign = {relative(path): {name.split(".")[0] for name in imported_modules(path)} for path in paths}
    assert {path: names - allowed for path, names in foreign.items() if names - allowed} == {}


def test_triton_kernels_import_nothing_of_their_plans():
    plans = {"plan", *(f"plan.{path.stem}" for path in PLAN.glob("*.py"))}
    importing = {relative(path): {*imported_modules(path)} for path in (ROOT / "triton_kernels").glob("*.py")}
    assert {path: names & plans for path, names in importing.items() if names & plans} == {}


def test_tools_import_nothing_of_ours_but_the_build_rules():
    paths = [path for path in TOOLS if path.suffix == ".py"]
    ours = {"build_backend", "compile_cached", "ninja_rules", "ptx_executor", *(path.stem for path in paths)}
    allowed = {"numpy", "pybind11", "pytest", "triton", "", *ours, *sys.stdlib_module_names}
    foreign = {relative(path): {name.split(".")[0] for name in imported_modules(path)} for path in paths}
    assert paths
    assert {path: names - allowed for path, names in foreign.items() if names - allowed} == ON_INSTALLATIONS


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def imported_names(path):
    """Yield the absolute name of every module that a file may import: modules, and names from modules."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def folder_in_bench(name):
    """Return the folder of bench, with dots, that contains a module or is it; "" is bench itself."""
    parts = name.split(".")[1:]
    return ".".join(parts[: next(n for n in (2, 1, 0) if ".".join(parts[:n]) in BENCH_IMPORTS)])


def test_nobody_imports_a_test_module():
    importing = {
        relative(path): [
            name
            for name in imported_names(path)
            if any(part == "conftest" or part.startswith(("test_", "bench_")) for part in name.split("."))
        ]
        for path in [*PYTHON_FILES, *BUILD_FILES, *OUTSIDE_FILES]
    }
    assert {path: names for path, names in importing.items() if names} == {}


def test_only_bench_and_its_tests_import_bench():
    foreign = [path for path in OUTSIDE_FILES if not relative(path).startswith(("bench/", "tests/bench/"))]
    importing = [path for path in foreign if "bench" in {name.split(".")[0] for name in imported_names(path)}]
    assert importing == []


def top_modules(folder):
    """Return the names of the modules and packages of a folder that is on the path."""
    return {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}


def test_the_package_imports_nothing_outside():
    names = {*OUTSIDE, *top_modules("tests"), *top_modules("examples")}
    importing = {
        relative(path): names & {name.split(".")[0] for name in imported_modules(path)}
        for path in [*PYTHON_FILES, *BUILD_FILES]
    }
    assert {path: found for path, found in importing.items() if found} == {}


def test_folders_of_bench_import_only_what_they_may():
    """Every folder has a line in BENCH_IMPORTS, which permits only folders above it, and uses all of it."""
    order = list(BENCH_IMPORTS)
    assert all(set(order[: order.index(name)]) >= others for name, others in BENCH_IMPORTS.items())
    folders = {".".join(path.parent.relative_to(ROOT / "bench").parts) for path in OUTSIDE_FILES
               if relative(path).startswith("bench/")}  # fmt: skip
    assert folders == BENCH_IMPORTS.keys()
    imported, helpers = {name: set() for name in folders}, {name: set() for name in folders}
    for path in (ROOT / "bench").rglob("*.py"):
        folder = folder_in_bench(".".join(path.relative_to(ROOT).with_suffix("").parts))
        names = set(imported_names(path))
        imported[folder] |= {folder_in_bench(name) for name in names if name.startswith("bench.")} - {folder}
        tops = {name.split(".")[0] for name in names} - {"bench"}
        helpers[folder] |= {top for top in ("tests", "examples", "tools") if tops & top_modules(top)}
    assert imported == BENCH_IMPORTS
    assert {name: found for name, found in helpers.items() if found} == BENCH_HELPERS
    extending = {relative(path) for path in (ROOT / "bench").rglob("*.py") if "sys.path" in path.read_text()}
    outermost = {name for name in BENCH_HELPERS if name.rpartition(".")[0] not in BENCH_HELPERS}
    assert extending == {f"bench/{name.replace('.', '/')}/__init__.py" for name in outermost}


def test_classes_of_bench_have_different_names():
    names = Counter(
        node.name
        for path in (ROOT / "bench").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_ops_cpp_includes_nothing_of_ours():
    ours = {path.name for path in SOURCE_FILES}
    assert [name for name in includes(ROOT / "csrc/ops.cpp") if Path(name).name in ours] == []


def test_only_cuda_code_includes_kernels():
    others = [
        path
        for path in SOURCE_FILES
        if not re.fullmatch(r"csrc/cuda/((kernels|plan)/)?[^/]+", relative(path))
    ]
    including = {relative(path): [name for name in includes(path) if "kernels/" in name] for path in others}
    assert others
    assert {path: names for path, names in including.items() if names} == {}


def test_files_are_short():
    lines = {
        relative(path): len(path.read_text().splitlines())
        for path in [*PYTHON_FILES, *SOURCE_FILES, *BUILD_FILES, *OUTSIDE_FILES]
    }
    long = {name: n for name, n in lines.items() if n > MAX_FILE_LINES and name not in LONGER_FILES}
    assert long == {}


def function_lines(node):
    """Return the number of lines of a function without its docstring."""
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    return (
        node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
    )


def test_functions_are_short():
    lines = {
        f"{relative(path)}:{node.name}": function_lines(node)
        for path in [*PYTHON_FILES, *BUILD_FILES, *OUTSIDE_FILES]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: n for name, n in lines.items() if n > MAX_FUNCTION_LINES and name not in LONGER_FUNCTIONS}
    assert long == {}


def test_every_exception_is_still_needed():
    """Exceptions for files and functions that are gone, or short enough, must be removed."""
    for name in LONGER_FILES:
        assert len((ROOT / name).read_text().splitlines()) > MAX_FILE_LINES, name
    for name in LONGER_FUNCTIONS:
        path, function = name.split(":")
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        named = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function]
        assert max(map(function_lines, named), default=0) > MAX_FUNCTION_LINES, name


def test_setup_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 120
