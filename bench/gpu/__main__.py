"""`python -m gpu`, from bench/."""

import sys

from .check import main

sys.exit(main())
