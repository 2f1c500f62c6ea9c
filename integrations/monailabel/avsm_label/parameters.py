"""Parameters of requests: declared once by each task, shown to clients as its options, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.errors import InputError, shown
from scripts.settings import Setting

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
        if value is None or (value == "" and self.default == ""):
            return self.default
        if self.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        choices = () if self.choices is None else tuple(self.option())
        setting = Setting(name, self.about, kind=self.kind, choices=choices, least=self.low, most=self.high)
        try:
            return setting.checked(value)
        except InputError as error:
            raise RequestError(f"{error}: the {self.about}") from error


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
        name = unknown[0][:100] if unknown[0].isidentifier() else shown(unknown[0])
        raise RequestError(f"{name}: no such parameter; this task takes {', '.join(sorted(declared))}")
    return {
        name: parameter.read(name, request[name]) if name in request else parameter.default
        for name, parameter in declared.items()
    }
