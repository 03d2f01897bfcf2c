"""`python -m bench.experiments.autoencoders`, see command.py."""

import sys

from bench.experiments.autoencoders.command import main

sys.exit(main())
