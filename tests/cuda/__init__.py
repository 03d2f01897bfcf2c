"""Tests of the CUDA kernels, which run on the PTX executor of tools/."""

import sys
from pathlib import Path

# pytest's configuration has it, the commands of this package and of bench/ do not.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
