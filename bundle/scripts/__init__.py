"""AVSM: rigid-to-deformable registration of 3D medical images, in Python.

    import avsm
    result = avsm.register("fixed.nii.gz", "moving.nii.gz")
    result.moved, result.transform, result.inverse, result.metrics, result.warnings
    result.save("out")

Installed, the package is called ``avsm``; from the bundle's folder MONAI's tools know the same code as ``scripts``. Its
rooms, each importing only those before it: errors, storage, processes, settings, geometry, spatial, formats, transform,
layers, losses, networks, report, metrics, optimize, synthetic, tracking, data, registration, training, cli.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_API = ("apply", "evaluate", "jacobian", "load_transform", "longitudinal", "register", "series", "template")
__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    """The functions of `api`, loaded when they are first asked for."""
    if name in _API:
        return getattr(importlib.import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
