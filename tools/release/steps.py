"""Take steps with the installed package or with a kernel of the hub's layout, and print the outcome as JSON.

    python steps.py [--kernel FOLDER]

It runs in the environments of `installs.py`. The outcome has a hash of the parameters after the steps, and
the errors of two calls: one that the library refuses and one that fails inside torch. Equal builds have
equal hashes and errors. With ``--kernel``, a package that is installed too has to take the same steps in
the same process, before the kernel is loaded and after.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import json
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

STEPS = 12
SHAPES = ((24, 16), (40,), (8, 3, 5))


def main() -> None:
    """Read the command line and print one line of JSON."""
    parser = argparse.ArgumentParser(description="Take steps with the installed package or a kernel.")
    parser.add_argument("--kernel", type=Path, help="a kernel repository for `kernels.get_local_kernel`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    installed = importlib.util.find_spec("kradagrad_ext") is not None
    package = import_package() if installed else None
    before = steps(package, "native") if package else None
    module = load_kernel(options.kernel) if options.kernel else package
    if module is None:
        raise SystemExit("steps: kradagrad_ext must be installed, or --kernel must name a kernel")
    result = report(module)
    if package and (before, steps(package, "native")) != (result["parameters"],) * 2:
        raise SystemExit("steps: the installed package and the kernel take different steps")
    print(json.dumps(result))


def import_package() -> ModuleType:
    """Import the installed package."""
    import kradagrad_ext

    return kradagrad_ext


def load_kernel(folder: Path) -> ModuleType:
    """Load a kernel as users of the hub do, and compare its files with the digests in its metadata."""
    import kernels
    from kernels._rust import Digest, DigestAlgorithm  # the module that the package itself calls

    module: ModuleType = kernels.get_local_kernel(folder)
    (loaded,) = kernels.get_loaded_kernels()
    variant = Path(inspect.getfile(module)).parent
    loaded.metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    return module


def report(module: ModuleType) -> dict[str, Any]:
    """Return what a copy of the package does, and in which environment."""
    native, reference = steps(module, "native"), steps(module, "reference")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": module.__version__,
        "file": inspect.getfile(module.KrADagrad),
        "parameters": native,
        "reference": reference,
        "errors": [error_of(ones(2, 3, 4)), error_of(ones(1).expand(2**20, 2**21, 2**21))],
    }


def ones(*shape: int) -> torch.Tensor:
    """Return a tensor of ones."""
    return torch.ones(shape)


def steps(module: ModuleType, backend: str) -> str:
    """Take steps on random gradients and return a hash of the parameters.

    Exits with an error if the backend's parameters are far from the reference's.
    """
    trained = {name: train(module, name) for name in {backend, "reference"}}
    for ours, theirs in zip(trained[backend], trained["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    flat = torch.cat([parameter.flatten() for parameter in trained[backend]])
    return hashlib.sha256(bytes(flat.view(torch.uint8).tolist())).hexdigest()[:16]


def train(module: ModuleType, backend: str) -> list[torch.Tensor]:
    """Return the parameters after the steps."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = module.KrADagrad(params, lr=1e-2, backend=backend)
    for _ in range(STEPS):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [param.detach() for param in params]


def error_of(factors: torch.Tensor) -> str:
    """Return the error of an op that cannot take these factors: its type and the first line of its text."""
    try:
        torch.ops.kradagrad_ext.decomposed_roots(factors, 2)
    except Exception as error:  # noqa: BLE001 (the type is what is compared)
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    raise SystemExit(f"steps: decomposed_roots must refuse factors of shape {tuple(factors.shape)}")


if __name__ == "__main__":
    main()
