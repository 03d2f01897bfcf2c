"""The exception for errors that a user can correct."""


class UsageError(Exception):
    """A wrong option or input, which ends the program with status 2; the message names it and its value."""
