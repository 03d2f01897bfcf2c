"""Facts about the compiled kernels that need no GPU: counts, evidence, work and errors.

The kernels run on the PTX executor with the inputs of the tests. These modules are imported by their names in
tests/.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))
