"""KrADagrad optimizers for PyTorch: Kronecker factors that approximate the inverse statistics directly."""

from importlib.metadata import PackageNotFoundError, version

from .cost import cost
from .diagnostics import Reading
from .diagnostics import report as diagnostics
from .grouping import param_groups
from .optimizer import KrADagrad
from .published import PublishedKrADagrad

try:
    __version__ = version("kradagrad-ext")
except PackageNotFoundError:
    __version__ = "0+source"

__all__ = ["KrADagrad", "PublishedKrADagrad", "Reading", "__version__", "cost", "diagnostics", "param_groups"]
