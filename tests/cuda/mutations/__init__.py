"""Faults put into the kernels on purpose, each of which the tests' checks must notice. See README.md."""
