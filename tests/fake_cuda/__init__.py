"""A CUDA runtime without a GPU, see README.md: its recordings, and the test that this process uses it."""

from .recording import Recording, is_active, recorded

__all__ = ["Recording", "is_active", "recorded"]
