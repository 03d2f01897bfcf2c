"""Benches of whole optimizer steps: time, host time, memory and build."""
