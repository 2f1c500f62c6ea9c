"""What a client has done wrong, and the status that tells it so."""

from __future__ import annotations

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from scripts.errors import InputError, input_error

__all__ = ["RequestError", "refusal"]

BAD_REQUEST, NOT_FOUND, CONFLICT = 400, 404, 409


class RequestError(MONAILabelException):
    """A request that cannot be served as it is.

    Args:
        reason: one line that names the parameter or file, the value and the mend.
        status: of HTTP, 4xx.
    """

    def __init__(self, reason: str, status: int = BAD_REQUEST) -> None:
        super().__init__(MONAILabelError.INVALID_INPUT, reason)
        self.args = (reason, status)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.args[1]

    def __str__(self) -> str:
        return self.args[0]


def refusal(error: BaseException) -> RequestError | None:
    """The client's mistake behind an exception of the app or the bundle; None for a fault of the server.

    Args:
        error: what was raised; the bundle's bad input may be wrapped by MONAI's config parser or transforms.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MONAILabelException) and error.error == MONAILabelError.INVALID_INPUT:
        return RequestError(error.msg)
    found = error if isinstance(error, InputError) else input_error(error)
    return None if found is None else RequestError(str(found).splitlines()[0])
