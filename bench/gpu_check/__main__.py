"""Entry point of `python -m gpu_check`, run from bench/."""

import sys

from .check import main

sys.exit(main())
