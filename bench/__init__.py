"""Benchmarks, measurements on GPUs and experiments; README.md lists the commands."""
