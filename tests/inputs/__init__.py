"""Inputs of the ops as real models feed them, shared by the tests of all backends."""
