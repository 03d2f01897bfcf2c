"""Builds by ninja: the command of every output file, for the native library and for programs of the tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import compile_cached

ROOT = Path(__file__).resolve().parent
PROGRESS = "[%f/%t, %es] "
"""Finished commands, all commands and seconds since the start; ninja prints a line per finished command."""

GIB = 1024**3


class BuildError(RuntimeError):
    """An error that ended a build."""


@dataclass(frozen=True)
class Compiler:
    """A command that makes one output file from one source.

    Args:
        name: a word, printed before every file.
        system: flags for folders of headers outside the tree; ``version`` stands for their contents.
        version: everything else that the output depends on, such as the version of the compiler.
        memory: maximum bytes that one command uses.
    """

    name: str
    command: Sequence[str]
    system: Sequence[str]
    version: str
    memory: int


def environment_facts(*names: str) -> str:
    """Return the environment variables of these names that are set, as one text."""
    return " ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))


class Build:
    """A build.ninja in a folder below the root; all commands run from the root.

    ninja records its runs in that folder. It remakes a file after a change of its command or of a file that
    its compiler read, and if the command that made it did not finish.
    """

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.root, self.folder = root, root / folder
        self.name = self.folder.relative_to(root).as_posix()
        self._rules: dict[str, list[str]] = {}
        self._edges: list[str] = []

    def compile(self, compiler: Compiler, source: Path | str, output: str) -> str:
        """Add the output of a compiler for a source, in the build's folder, and return its path."""
        version = compile_cached.key(compiler.version.encode())
        words = [*map(quoted, [sys.executable, str(ROOT / "compile_cached.py"), version]), "$out"]
        words += [*map(quoted, [shlex.join(compiler.system), "--", *compiler.command]), "$in"]
        pool = [f"pool {compiler.name}", f"  depth = {jobs(compiler.memory)}"]
        lines = [f"  command = {' '.join(words)}", "  depfile = $out.d", "  deps = gcc"]
        lines += [f"  description = {compiler.name} $in", f"  pool = {compiler.name}"]
        self._rules[compiler.name] = [*pool, f"rule {compiler.name}", *lines]
        return self._edge(compiler.name, [str(source)], output)

    def link(
        self, command: Sequence[str], objects: Sequence[str], libraries: Sequence[str], output: str
    ) -> str:
        """Add a shared library and return its path."""
        words = [*map(quoted, command), "-shared", "$in", "-o", "$out", *map(quoted, libraries)]
        lines = [f"  command = {' '.join(words)}", "  description = LINK $out"]
        self._rules["LINK"] = ["rule LINK", *lines]
        return self._edge("LINK", objects, output)

    def _edge(self, rule: str, inputs: Sequence[str], output: str) -> str:
        path = f"{self.name}/{output}"
        self._edges.append(f"build {escaped(path)}: {rule} {' '.join(map(escaped, inputs))}")
        return path

    def run(self, show: bool = False) -> None:
        """Make all outputs that are out of date; one process at a time.

        Args:
            show: print progress and the compilers' messages, which are otherwise part of the error.

        Raises:
            BuildError: a command failed.
        """
        import fcntl  # not on Windows, where this file is only imported

        self.folder.mkdir(parents=True, exist_ok=True)
        rules = [line for rule in self._rules.values() for line in rule]
        text = "\n".join([f"builddir = {escaped(self.name)}", *rules, *self._edges, ""])
        path = self.folder / "build.ninja"
        command = [find_ninja(), "-f", f"{self.name}/build.ninja", "-j", str(jobs())]
        environment = {"NINJA_STATUS": PROGRESS, **os.environ}
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            done = subprocess.run(command, cwd=self.root, env=environment, capture_output=not show, text=True)
        if done.returncode:
            output = ", see above" if show else f":\n{done.stdout}{done.stderr}"
            raise BuildError(f"{shlex.join(command)} failed{output}")
        compile_cached.prune()


def escaped(path: str) -> str:
    """Escape a path for a build statement."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quoted(word: str) -> str:
    """Quote a word of a command, which a shell reads."""
    return shlex.quote(word).replace("$", "$$")


def jobs(memory: int = 0) -> int:
    """Return how many commands may run at once: MAX_JOBS, or the limit by cores and memory per command."""
    named = os.environ.get("MAX_JOBS")
    if named:
        if not named.isdecimal() or int(named) < 1:
            raise BuildError(f"MAX_JOBS must be a number from 1 on, got {named!r}")
        return int(named)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, available_memory() // memory)) if memory else cores


def available_memory() -> int:
    """Return the bytes that processes can use without swapping; 1 TiB if /proc/meminfo does not exist."""
    path = Path("/proc/meminfo")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(match[1]) * 1024 if match else 1024 * GIB


def find_ninja() -> str:
    """Return the path of the ninja in PyPI's package, else of one on PATH."""
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    path = shutil.which("ninja")
    if path is None:
        raise BuildError("no ninja found: pip install ninja")
    return path
