"""A comparison of optimizers that a sceptic can rerun: the same tasks, budgets and loop for all of them.

The language tasks train the example's model, and all tasks use its schedule, with other shares. Its package
`gpt` is in examples/.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
