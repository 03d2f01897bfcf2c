"""KrADagrad optimizers for PyTorch: Kronecker factors that approximate the inverse statistics directly."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .diagnostics import AsyncDiagnostics, read_diagnostics
from .grouping import param_groups
from .optimizer import KrADagrad
from .published import PublishedKrADagrad

if TYPE_CHECKING:
    from .cost import estimate_cost

try:
    __version__ = version("kradagrad-ext")
except PackageNotFoundError:
    __version__ = "0+source"

__all__ = [
    "AsyncDiagnostics",
    "KrADagrad",
    "PublishedKrADagrad",
    "__version__",
    "estimate_cost",
    "param_groups",
    "read_diagnostics",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import `estimate_cost` on first use, because few programs need it."""
    if name != "estimate_cost":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .cost import estimate_cost

    return estimate_cost
