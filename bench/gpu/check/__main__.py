"""Entry point of `python -m bench.gpu.check`, which bench/gpu_check.sh runs."""

import sys

from bench.gpu.check.driver import main

sys.exit(main())
