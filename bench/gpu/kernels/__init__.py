"""Facts about the compiled kernels that need no GPU: counts, evidence, work and errors.

The kernels run on the PTX executor with the inputs of the tests. These modules are imported by their names in
tools/ and tests/.
"""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[3] / folder) for folder in ("tests", "tools")]
