"""The one exception for what a user can put right."""


class UsageError(Exception):
    """A wrong option or input; the message says which and what was got. Ends the program with status 2."""
