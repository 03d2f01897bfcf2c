"""The import of bench, which is a package at the repository's root, by the tests of this folder.

The root comes last on the path: an installed package must be found before the one in the tree.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
