"""Microbenchmarks of single ops."""
