"""The arena's training tasks, from data that every machine has: nothing is downloaded.

The language tasks train the example's model, whose package `gpt` is in examples/.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "examples"))
