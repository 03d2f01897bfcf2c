"""Targets that ninja_rules.py and compile_cached.py rebuild, reuse, and never reuse."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import compiled_module
import pytest

import compile_cached
from build_backend import find_compiler

ninja_rules = compiled_module.ninja_rules
COMPILER = find_compiler()[0]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

FAKE = """#!/bin/sh
for output; do :; done
while [ "$1" != -MF ]; do shift; done
echo "$output: a.cpp" > "$2"
printf half > "$output"
[ -e slow ] && { echo $$ $PPID > started; sleep 100; }
printf whole > "$output"
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tree of three sources, two with a header each, without a cache."""
    monkeypatch.delenv("KRADAGRAD_CACHE", raising=False)
    return make_tree(tmp_path / "first")


def make_tree(root: Path) -> Path:
    root.mkdir()
    for name in "ab":
        (root / f"{name}.h").write_text(f"inline int of_{name}() {{ return 1; }}\n")
        (root / f"{name}.cpp").write_text(f'#include "{name}.h"\nint {name}() {{ return of_{name}(); }}\n')
    (root / "c d.cpp").write_text("int c() { return 1; }\n")
    return root


def build(root: Path, *flags: str, version: str = "1") -> Path:
    """Build a library from a tree's sources and return its path."""
    compiler = ninja_rules.Compiler("CXX", [*COMPILER, "-fPIC", *flags, "-c"], [], version, 1)
    rules = ninja_rules.Build(Path("build"), root)
    objects = [rules.compile(compiler, name, f"{name}.o") for name in ("a.cpp", "b.cpp", "c d.cpp")]
    library = root / rules.link(COMPILER, objects, [], "library.so")
    rules.run()
    return library


def remade(root: Path, action: Callable[[], object]) -> set[str]:
    """Return the names of the objects and libraries that an action wrote."""

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in root.glob("build/*.*o")}

    before = times()
    action()
    return {name for name, when in times().items() if before.get(name) != when}


@needs_compiler
def test_only_targets_that_depend_on_a_change_are_rebuilt(tree: Path) -> None:
    all_targets = {"a.cpp.o", "b.cpp.o", "c d.cpp.o", "library.so"}
    assert remade(tree, lambda: build(tree)) == all_targets
    assert remade(tree, lambda: build(tree)) == set()
    (tree / "a.h").write_text("inline int of_a() { return 2; }\n")
    assert remade(tree, lambda: build(tree)) == {"a.cpp.o", "library.so"}
    (tree / "c d.cpp").write_text("int c() { return 2; }\n")
    assert remade(tree, lambda: build(tree)) == {"c d.cpp.o", "library.so"}
    assert remade(tree, lambda: build(tree, "-O1")) == all_targets
    assert remade(tree, lambda: build(tree, "-O1", version="2")) == all_targets


@needs_compiler
def test_an_error_is_the_compilers(tree: Path) -> None:
    (tree / "a.h").write_text("no C++\n")
    with pytest.raises(ninja_rules.BuildError, match=r"a\.h:1:1: error"):
        build(tree)


@needs_compiler
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_compiler_leaves_no_object(tree: Path, ending: signal.Signals) -> None:
    fake = tree / "compiler"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    compiler = ninja_rules.Compiler("CXX", [str(fake), "-c"], [], "", 1)
    rules = ninja_rules.Build(Path("build"), tree)
    target = tree / rules.compile(compiler, "a.cpp", "a.cpp.o")
    rules.run()
    assert target.read_text() == "whole"

    (tree / "slow").touch()
    (tree / "a.cpp").write_text("changed\n")
    process = subprocess.Popen(
        [ninja_rules.find_ninja(), "-f", "build/build.ninja"], cwd=tree, stdout=subprocess.DEVNULL
    )
    started = tree / "started"
    while not (started.exists() and len(started.read_text().split()) == 2):
        time.sleep(0.01)
    for pid in (process.pid, *reversed(started.read_text().split())):
        if ending == signal.SIGKILL or int(pid) == process.pid:  # ninja interrupts its commands itself
            os.kill(int(pid), ending)
    process.wait()
    assert not target.exists() or target.read_text() == "whole"
    (tree / "slow").unlink()
    assert remade(tree, rules.run) == {"a.cpp.o"}
    assert target.read_text() == "whole"


@pytest.fixture
def counting(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Set up a cache; return a function that counts the compilations since its last call."""
    calls, compiler = tree.parent / "calls", tree.parent / "compiler"
    compiler.write_text(f'#!/bin/sh\necho call >> {calls}\nexec {shlex.join(COMPILER)} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(sys.modules[__name__], "COMPILER", (str(compiler),))
    monkeypatch.setenv("KRADAGRAD_CACHE", str(tree.parent / "cache"))

    def count() -> int:
        number = len(calls.read_text().split()) if calls.exists() else 0
        calls.unlink(missing_ok=True)
        return number - 1  # without the link

    return count


@needs_compiler
def test_a_fresh_clone_reuses_objects_of_another(tree: Path, counting: Callable[[], int]) -> None:
    first = build(tree).read_bytes()
    assert counting() == 3
    other = make_tree(tree.parent / "second")
    assert build(other).read_bytes() == first
    assert counting() == 0
    (other / "a.h").write_text("inline int of_a() { return 2; }\n")
    assert build(other).read_bytes() != first
    assert counting() == 1
    build(other, version="2")
    assert counting() == 3
    shutil.rmtree(tree)
    assert build(make_tree(tree)).read_bytes() == first
    assert counting() == 0


def damaged(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)


def cut_short(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size // 2)


@needs_compiler
@pytest.mark.parametrize("harm", [damaged, cut_short, Path.unlink])
@pytest.mark.parametrize("suffixes", [[".read"], [""], [".read", ""]], ids=["names", "objects", "both"])
def test_a_cache_that_is_damaged_costs_only_time(
    tree: Path, counting: Callable[[], int], harm: Callable[[Path], object], suffixes: list[str]
) -> None:
    first = build(tree).read_bytes()
    counting()
    entries = [entry for entry in (tree.parent / "cache/compiled").iterdir() if entry.suffix in suffixes]
    assert len(entries) == 3 * len(suffixes)
    for entry in entries:
        harm(entry)
    assert build(make_tree(tree.parent / "second")).read_bytes() == first
    assert counting() == 3
    assert build(make_tree(tree.parent / "third")).read_bytes() == first
    assert counting() == 0


@needs_compiler
def test_a_cache_that_cannot_be_written_is_ignored(tree: Path, counting: Callable[[], int]) -> None:
    (tree.parent / "cache").write_text("a file, not a folder")
    build(tree)
    assert counting() == 3


def test_unused_entries_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRADAGRAD_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_cached, "MOST_BYTES", 150)
    for name, days in (("unused", 31), ("older", 2), ("newer", 1), ("newest", 0)):
        entry = tmp_path / "compiled" / name
        compile_cached.store(entry, b"x" * 20)
        used = time.time() - days * 24 * 3600
        os.utime(entry, (used, used))
    binary = tmp_path / "triton/digest/kernel.cubin"
    binary.parent.mkdir(parents=True)
    binary.touch()
    compile_cached.prune()
    assert binary.exists()
    os.utime(binary.parent, (0, 0))
    compile_cached.prune()
    assert not binary.parent.exists()
    assert {path.name for path in (tmp_path / "compiled").iterdir()} == {"newer", "newest"}
    assert compile_cached.fetch(tmp_path / "compiled/newest") == b"x" * 20


@pytest.mark.parametrize(
    ("memory", "named", "expected"), [(0, None, 4), (3, None, 2), (9, None, 1), (9, "3", 3)]
)
def test_jobs_are_as_many_as_cores_and_memory_allow(
    memory: int, named: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(ninja_rules, "available_memory", lambda: 8)
    monkeypatch.delenv("MAX_JOBS", raising=False)
    if named:
        monkeypatch.setenv("MAX_JOBS", named)
    assert ninja_rules.jobs(memory) == expected


def test_jobs_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(ninja_rules.BuildError, match="MAX_JOBS must be a number from 1 on, got 'many'"):
        ninja_rules.jobs()


def test_a_missing_ninja_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ninja_rules.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ninja_rules.BuildError, match="no ninja found: pip install ninja"):
        ninja_rules.find_ninja()
