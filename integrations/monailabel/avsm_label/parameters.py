"""Parameters of requests: declared once by each task, shown to clients as its options, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import RequestError

__all__ = ["CARRIED", "RESERVED", "Parameter", "read_parameters"]

RESERVED = frozenset(("model", "image", "images", "session", "session_id", "label", "description", "_id", "_image_id"))
"""Keys of a request that MONAI Label sets itself and that no client may set through ``params``."""

CARRIED = frozenset(
    (
        *("client_id", "user", "strategy", "logging", "timeout", "local_rank", "bundle_path", "label_info"),
        *("result_compress", "restore_label_idx", "multi_gpu", "gpus", "max_workers", "max_batch_size"),
    )
)
"""Keys that MONAI Label and its clients add to requests and that mean nothing to the tasks of this app."""


@dataclass(frozen=True)
class Parameter:
    """One option of a task.

    Attributes:
        default: value where the client gives none; its type is the parameter's, unless ``kind`` says so.
        about: what it does, for error messages and documentation.
        kind: type of the value.
        choices: values allowed besides the default; None for any of the type.
        low: smallest number allowed.
        high: largest number allowed.
        shown: whether clients show it among the task's options.
    """

    default: Any
    about: str
    kind: type = str
    choices: Sequence[str] | None = None
    low: float = -math.inf
    high: float = math.inf
    shown: bool = True

    def option(self) -> Any:
        """The parameter as clients show it: a list is a menu whose first entry is the default."""
        if self.choices is None:
            return self.default
        return [self.default, *(choice for choice in self.choices if choice != self.default)]

    def read(self, name: str, value: Any) -> Any:
        """A client's value, checked.

        Raises:
            RequestError: if it is of another type, out of range, or not among the choices.
        """
        if self.choices is not None and isinstance(value, list) and value:
            value = value[0]  # a menu that a client has sent back as it came
        if value is None:
            return self.default
        if self.kind in (int, float):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (self.kind is int and value != int(value)):
                kind = "whole number" if self.kind is int else "number"
                raise RequestError(f"{name}: {value!r} is not a {kind}; give the {self.about}")
            if not self.low <= value <= self.high:
                limits = f"from {self.low:g}" + ("" if math.isinf(self.high) else f" to {self.high:g}")
                raise RequestError(f"{name}: {value} is out of range; give the {self.about}, {limits}")
            return self.kind(value)
        if not isinstance(value, self.kind):
            word = {bool: "true or false", str: "a text"}[self.kind]
            raise RequestError(f"{name}: {value!r} is not {word}; give the {self.about}")
        if self.choices is not None and value not in self.option():
            raise RequestError(f"{name}: {value!r} is not known; give one of {', '.join(self.option())}")
        return value


def read_parameters(request: Mapping[str, Any], declared: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values of a task's parameters in a request, defaults included.

    Args:
        request: of MONAI Label: the client's parameters and what MONAI Label adds.
        declared: the task's parameters.

    Raises:
        RequestError: for a parameter that the task does not have, or a value that does not fit.
    """
    unknown = sorted(str(key) for key in request if key not in {*declared, *RESERVED, *CARRIED})
    if unknown:
        raise RequestError(f"{unknown[0]}: no such parameter; this task takes {', '.join(sorted(declared))}")
    return {
        name: parameter.read(name, request[name]) if name in request else parameter.default
        for name, parameter in declared.items()
    }
