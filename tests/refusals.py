"""What every refusal keeps to."""

import re
from contextlib import contextmanager

import pytest

from scripts.errors import InputError


@contextmanager
def one_line(words, start="", without=()):
    """An `InputError` must come: one line that starts as given and holds the words, or what matches them.

    With words that it must be without, it must also have a mend behind a semicolon.
    """
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(str(start)) and "\n" not in message and len(message) < 700 + 2 * len(str(start)), message
    assert words in message or re.search(words, message), message
    assert not without or (";" in message and not any(word in message for word in without)), message
