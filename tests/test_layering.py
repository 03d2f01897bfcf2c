"""The project's structure: who may import or include whom, and how long files and functions may be."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kradagrad_ext"

# What each module of the package may import from the package. A new module gets a line here.
MAY_IMPORT = {
    "": {"optimizer", "published", "cost", "diagnostics", "grouping"},
    "cost": {
        "config", "plan", "distributed.pieces", "cost.estimate", "cost.gpus", "cost.memory",
        "cost.parameters", "cost.steps", "cost.traffic",
    },
    "cost.__main__": {"config", "cost", "cost.gpus", "cost.models", "cost.parameters"},
    "cost.estimate": {"tables", "cost.gpus", "cost.memory"},
    "cost.memory": {"backends.base", "backends.scalars", "state", "cost.steps"},
    "cost.traffic": {"distributed.pieces", "cost.gpus", "cost.parameters"},
    "cost.parameters": {"config", "optimizer", "plan"},
    "cost.steps": {"config", "plan", "cost.blocks", "cost.elementwise", "cost.gpus"},
    "cost.blocks": {"backends.base", "clock", "config", "plan", "polar", "roots", "cost.gpus"},
    "cost.elementwise": {
        "backends.base", "backends.scalars", "config", "plan", "state", "cost.blocks", "cost.gpus",
    },
    "cost.models": {"plan"},
    "cost.gpus": {"cost.work"},
    "cost.work": set(),
    "grouping": {"tables"},
    "tables": set(),
    "optimizer": {
        "config", "coverage", "local", "plan", "step", "checkpoint", "whole_steps", "distributed.sharded",
    },
    "coverage": {"config", "plan"},
    "whole_steps": set(),
    "published": {"config", "coverage", "full_precision", "state"},
    "local": {"bucket", "config", "full_precision", "plan", "state", "step", "whole_steps"},
    "full_precision": set(),
    "distributed": set(),
    "distributed.sharded": {
        "distributed.kept", "distributed.layout", "distributed.shard", "distributed.stored", "full_precision",
        "state", "step", "whole_steps",
    },
    "distributed.shard": {
        "block_layout", "bucket", "config", "norms", "plan", "state", "step", "uploads",
        "distributed.exchange", "distributed.kept", "distributed.layout", "distributed.parts",
        "distributed.pieces",
    },
    "distributed.kept": {"plan", "state", "distributed.layout", "distributed.parts", "distributed.stored"},
    "distributed.stored": {"plan", "state", "distributed.pieces"},
    "distributed.parts": {
        "backends.scalars", "block_layout", "bucket", "config", "plan", "state", "step",
        "distributed.exchange", "distributed.layout", "distributed.pieces", "distributed.stored",
    },
    "distributed.layout": {"distributed.pieces"},
    "distributed.exchange": {"bucket"},
    "distributed.pieces": {"config", "plan"},
    "step": {
        "block_layout", "bucket", "clock", "config", "side_stream", "state", "captured", "packed",
        "preconditioner", "backends", "backends.base", "backends.scalars",
    },
    "packed": {"config", "plan", "packing", "preconditioner", "state", "backends.base"},
    "captured": {"config", "preconditioner", "state", "backends.base"},
    "clock": {"config", "backends.base"},
    "packing": set(),
    "block_views": set(),
    "block_layout": {"plan"},
    "decomposed_roots": set(),
    "polar": {"decomposed_roots", "backends.base"},
    "preconditioner": {
        "block_views", "clock", "config", "plan", "side_stream", "state", "polar", "roots", "backends.base",
    },
    "side_stream": set(),
    "checkpoint": {"backends", "bucket", "config", "packing", "plan", "state"},
    "diagnostics": {"measures"},
    "measures": {"backends.base", "backends.scalars", "packing", "polar"},
    "bucket": {
        "backends.base", "backends.scalars", "block_layout", "plan", "config", "norms", "roots", "state",
        "uploads",
    },
    "state": {"backends.base", "backends.scalars", "block_layout", "plan", "config", "packing"},
    "norms": set(),
    "uploads": set(),
    "plan": {"config"},
    "roots": {"backends.base", "decomposed_roots", "polar"},
    "config": {"polar", "backends.base", "backends.scalars"},
    "build_info": set(),
    "env_report": {"build_info", "backends"},
    "backends": {"build_info", "backends.base"},
    "backends.base": {"backends.scalars"},
    "backends.scalars": set(),
    "backends.square_root": {"backends.base", "block_views"},
    "backends.square_root_triton": {"backends.arguments", "backends.base", "backends.square_root"},
    "backends.reference": {"decomposed_roots", "polar", "backends.scalars", "backends.square_root"},
    "backends.native": {
        "decomposed_roots", "polar", "backends.base", "backends.scalars", "backends.square_root",
        "build_info",
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
}  # fmt: skip

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 40

# Each with the reason why it is not split.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS = {
    "kradagrad_ext/optimizer.py:__init__": "all but a few lines are the options and their defaults",
    "triton_kernels/accumulate.py:accumulate": "half of it are a kernel's arguments",
    "triton_kernels/parameter_step.py:parameter_step": "half of it are a kernel's arguments",
    "triton_kernels/square_root_resident.py:square_root_resident": "half of it are a kernel's arguments",
}

PYTHON_FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")])
SOURCE_FILES = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
)
BUILD_FILES = sorted(ROOT.glob("*.py"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    """Dotted name below kradagrad_ext; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Absolute names of everything a file imports, at any depth of its code."""
    package = ["kradagrad_ext", *path.relative_to(PACKAGE).parent.parts] if PACKAGE in path.parents else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` names a module only where there is such a file.
            folder = ROOT / source.replace(".", "/")
            yield from (
                f"{source}.{alias.name}" if (folder / f"{alias.name}.py").exists() else source
                for alias in node.names
            )


def test_modules_import_only_what_they_may():
    """A new module gets a line in MAY_IMPORT, and one that is gone loses its own."""
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    assert modules.keys() == MAY_IMPORT.keys()
    forbidden = {}
    for name, path in modules.items():
        inner = {other for other in imported_modules(path) if other.split(".")[0] == "kradagrad_ext"}
        found = {other.removeprefix("kradagrad_ext").removeprefix(".") for other in inner}
        forbidden[name] = found - MAY_IMPORT[name]
    assert {name: found for name, found in forbidden.items() if found} == {}


def test_triton_kernels_import_torch_and_triton_only():
    paths = sorted((ROOT / "triton_kernels").rglob("*.py"))
    allowed = {"torch", "triton", "", *(path.stem for path in paths), *sys.stdlib_module_names}
    foreign = {relative(path): {name.split(".")[0] for name in imported_modules(path)} for path in paths}
    assert {path: names - allowed for path, names in foreign.items() if names - allowed} == {}


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


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
        for path in [*PYTHON_FILES, *SOURCE_FILES, *BUILD_FILES]
    }
    long = {name: n for name, n in lines.items() if n > MAX_FILE_LINES and name not in LONGER_FILES}
    assert long == {}


def function_lines(node):
    """Lines of a function without its docstring."""
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    return (
        node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
    )


def test_functions_are_short():
    lines = {
        f"{relative(path)}:{node.name}": function_lines(node)
        for path in [*PYTHON_FILES, *BUILD_FILES]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: n for name, n in lines.items() if n > MAX_FUNCTION_LINES and name not in LONGER_FUNCTIONS}
    assert long == {}


def test_every_exception_is_still_needed():
    """A reason for a file or function that is gone or short again is to be removed."""
    for name in LONGER_FILES:
        assert len((ROOT / name).read_text().splitlines()) > MAX_FILE_LINES, name
    for name in LONGER_FUNCTIONS:
        path, function = name.split(":")
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        named = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function]
        assert max(map(function_lines, named), default=0) > MAX_FUNCTION_LINES, name


def test_setup_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 120
