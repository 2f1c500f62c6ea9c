"""How far a registration has come."""

from __future__ import annotations

from typing import Protocol

__all__ = ["READ", "REGISTER", "WRITE", "Tell", "nothing"]

READ, REGISTER, WRITE, DONE = "read", "register", "transform, measure and write", "done"
SHARES = {READ: (0.0, 0.1), REGISTER: (0.1, 0.6), WRITE: (0.6, 1.0), DONE: (1.0, 1.0)}
"""The parts of a pair's time, about."""


class Tell(Protocol):
    """Is told how far a registration has come."""

    def __call__(self, part: float, what: str) -> None:
        """A stage, one of `SHARES`, begins (0), or so much of it is done, and what is done now."""


def nothing(part: float, what: str) -> None:
    """Tells nobody."""
