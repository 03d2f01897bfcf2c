"""Experiments of papers."""
