"""Measurements that choose default options and the rows of Triton's tuning table.

The tasks train the example's model, whose package `gpt` is in examples/.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
