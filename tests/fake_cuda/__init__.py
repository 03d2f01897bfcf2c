"""A CUDA runtime without a GPU, see README.md: what it recorded, and whether this process runs under it."""

from .recording import Recording, is_active, recorded

__all__ = ["Recording", "is_active", "recorded"]
