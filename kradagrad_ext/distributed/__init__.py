"""Sharding of the optimizer over the ranks of a process group (docs/distributed.md)."""
