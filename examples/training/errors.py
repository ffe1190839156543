"""What a person can mend."""


class InputError(ValueError):
    """What was given does not fit: a folder, a file, a recipe. The message says enough."""
