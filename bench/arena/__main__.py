"""`python -m bench.arena`, see command.py."""

import sys

from bench.arena.command import main

sys.exit(main())
