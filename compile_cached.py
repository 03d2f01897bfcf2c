"""Run one compiler for ninja, or take its output from a cache outside the tree.

``compile_cached.py VERSION OUTPUT SYSTEM -- COMMAND`` runs COMMAND with the words of SYSTEM appended. SYSTEM
names folders of headers, and VERSION stands for their contents. The cache is in the folder KRADAGRAD_CACHE;
if the variable is unset or empty, there is no cache. The key of an entry is VERSION, COMMAND and the contents
of every file that the compiler read last time, so clones share their entries. The build does not depend on
the cache: an output whose entry is missing or damaged is compiled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

DIGEST_BYTES = 32
LONGEST_UNUSED = 30 * 24 * 3600
MOST_BYTES = 2 * 1024**3


def cache_folder(kind: str = "compiled") -> Path | None:
    """Return the cache folder for files of a kind, outside the tree; None without a cache."""
    named = os.environ.get("KRADAGRAD_CACHE")
    return Path(named).expanduser() / kind if named else None


def fetch(entry: Path) -> bytes | None:
    """Return the content of an entry; None if the entry is missing or damaged."""
    try:
        stored = entry.read_bytes()
        os.utime(entry)  # so that prune keeps entries in use
    except OSError:
        return None
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def store(entry: Path, content: bytes) -> None:
    """Write an entry atomically: other processes see all of it or nothing."""
    partial = entry.with_name(f"{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(content).digest() + content)
        partial.replace(entry)
    except OSError as error:
        print(f"warning: not kept in KRADAGRAD_CACHE: {error}", file=sys.stderr)


def prune() -> None:
    """Remove, for each kind, entries unused for 30 days and the oldest beyond 2 GiB.

    Triton has a folder per result; the age of a folder counts from the time when it was written.
    """
    for folder in (cache_folder("compiled"), cache_folder("triton")):
        entries = []
        for path in folder.iterdir() if folder and folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                files = list(path.iterdir()) if path.is_dir() else [path]
                entries.append((path.stat().st_mtime, sum(file.stat().st_size for file in files), path))
        kept, oldest = 0, time.time() - LONGEST_UNUSED
        for used, size, path in sorted(entries, reverse=True):
            kept += size
            if used < oldest or kept > MOST_BYTES:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder that another process may remove at the same time."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def key(*parts: bytes) -> str:
    """Hash several texts."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def key_of_contents(command_key: str, read: list[str]) -> str | None:
    """Return the key of a compiler's output, from all files that it reads; None if a file is missing."""
    try:
        contents = [Path(name).read_bytes() for name in read]
    except OSError:
        return None
    return key(command_key.encode(), "\n".join(read).encode(), *contents)


def take(folder: Path, command_key: str, output: Path) -> list[str] | None:
    """Copy an output from the cache and return the files that it was made from; None without an entry."""
    names = fetch(folder / f"{command_key}.read")
    if names is None:
        return None
    read = names.decode().splitlines()
    contents_key = key_of_contents(command_key, read)
    content = fetch(folder / contents_key) if contents_key else None
    if content is None:
        return None
    partial = output.with_name(f"{output.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(output)
    return read


def keep(folder: Path, command_key: str, output: Path, read: list[str]) -> None:
    """Store an output in the cache."""
    contents_key = key_of_contents(command_key, read)
    if contents_key:
        store(folder / contents_key, output.read_bytes())
        store(folder / f"{command_key}.read", "\n".join(read).encode())


def compile_file(command: list[str], output: Path) -> list[str]:
    """Run the compiler and return the files that it read, except system headers. Exit if it fails."""
    partial = output.with_name(f"{output.name}.{os.getpid()}")
    dependencies = partial.with_name(f"{partial.name}.d")
    environment = dict(os.environ)
    if Path("/proc/self/cwd").exists():
        # nvcc writes absolute names of sources into line tables; this makes them equal in every clone.
        environment["PWD"] = "/proc/self/cwd"
    outputs = ["-MMD", "-MF", str(dependencies), "-o", str(partial)]
    try:
        done = subprocess.run([*command, *outputs], env=environment)
        if done.returncode:
            sys.exit(done.returncode)
        rule = dependencies.read_text()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
        dependencies.unlink(missing_ok=True)
    return shlex.split(rule.replace("\\\n", " ").partition(": ")[2])


def main(version: str, target: str, system: str, command: list[str]) -> None:
    """Make the target and, beside it, the file of dependencies that ninja reads."""
    output, folder = Path(target), cache_folder()
    command_key = key(version.encode(), shlex.join(command).encode())
    read = take(folder, command_key, output) if folder else None
    if read is None:
        start = time.time()
        read = compile_file([*command, *shlex.split(system)], output)
        # The compiler may have read an earlier version of a file that was edited meanwhile.
        if folder and all(Path(name).stat().st_mtime < start for name in read):
            keep(folder, command_key, output, read)
    names = [name.replace(" ", "\\ ") for name in read]
    Path(f"{target}.d").write_text(f"{target}: {' '.join(names)}\n")


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(*sys.argv[1:end], command=sys.argv[end + 1 :])
