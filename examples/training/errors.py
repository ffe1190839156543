"""Errors that a user can fix; the message is enough to do so."""


class InputError(ValueError):
    """A folder, a file, a recipe or an option is wrong."""


class UnreadableFile(InputError):
    """A file is truncated, or not what it should be; the message begins with its path."""


class Diverged(ArithmeticError):
    """The loss is no longer finite."""
