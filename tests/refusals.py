"""What every refusal keeps to."""

import re
import signal
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


class Hangs(BaseException):
    """Raised in what takes longer than allowed; no handler of errors may catch it."""


@contextmanager
def within(seconds):
    """What is done here must not take longer."""

    def hang(*_):
        raise Hangs

    earlier = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
