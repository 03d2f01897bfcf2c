"""Report of versions and backends, with the reasons why backends cannot run.

Paste the output of ``python -m kradagrad_ext.env_report`` into a bug report.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from . import build_info
from .backends import available_backends


def report() -> str:
    """Return the report, one fact per line."""
    rows = {**_versions(), **_machine()}
    for device in _devices():
        for name, reason in available_backends(device).items():
            rows[f"{device.type} backend {name}"] = "usable" if reason is None else f"no: {reason}"
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items())


def _versions() -> dict[str, str]:
    return {
        "kradagrad_ext": _version("kradagrad-ext"),
        "native library": _native_library(),
        "KRADAGRAD_BACKEND": os.environ.get("KRADAGRAD_BACKEND", "not set"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": torch.__version__,
        "triton": _version("triton"),
    }


def _machine() -> dict[str, str]:
    return {
        "system": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "torch threads": str(torch.get_num_threads()),
        "cuda": _cuda(),
    }


def _native_library() -> str:
    build = build_info.read_build_info()
    if build.native == "none":
        return f"none: {build.reason}"
    glibc = f", glibc {build.glibc}" if build.glibc else ""
    return f"{build.native}, KRADAGRAD_BUILD={build.requested}, {build.compiler}, torch {build.torch}{glibc}"


def _cuda() -> str:
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda}, no usable device"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


def _devices() -> list[torch.device]:
    types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [torch.device(device_type) for device_type in types]


def _version(distribution: str) -> str:
    installed = next(iter(metadata.distributions(name=distribution)), None)
    return "not installed" if installed is None else installed.version


if __name__ == "__main__":
    print(report())
