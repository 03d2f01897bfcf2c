"""An executor of PTX on the CPU, see README.md."""

from .api import (
    Counters,
    ExecutionError,
    Kernel,
    Launch,
    Memory,
    ParseError,
    Report,
    StepLimit,
    canonical,
    isolate,
    opcodes,
)

__all__ = [
    "Counters",
    "ExecutionError",
    "Kernel",
    "Launch",
    "Memory",
    "ParseError",
    "Report",
    "StepLimit",
    "canonical",
    "isolate",
    "opcodes",
]
