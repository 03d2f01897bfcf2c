"""`python -m gpu_check`, from bench/."""

import sys

from .check import main

sys.exit(main())
