"""Description of the machine for readers of the numbers: GPU, driver, versions and usable backends."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from bench.gpu.check.words import Report
from kradagrad_ext import env_report
from kradagrad_ext.backends import available_backends


def describe(device: torch.device, report: Report) -> None:
    """Print the report and send the facts that the driver uses: device, capability, backends."""
    print(env_report.report(), flush=True)
    facts = {
        **_card(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": next((package.version for package in metadata.distributions(name="triton")), None),
        "backends": {name: reason or "usable" for name, reason in available_backends(device).items()},
    }
    for name, value in facts.items():
        print(f"{name}: {value}", flush=True)
    report.send(facts=facts)


def _card(device: torch.device) -> dict[str, object]:
    if device.type != "cuda":
        return {"device": platform.machine()}
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device: nothing can be checked")
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20),
    }
