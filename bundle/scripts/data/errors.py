"""The error of the data room."""

__all__ = ["InputError"]


class InputError(ValueError):
    """A user's bad input: a file, a data list or a setting.

    The message is one clear line that names the file or argument, the value found, and the mend.
    """
