"""Distributions of a release: their build, their checks, and the layout of a kernel for the hub."""
