"""Where the bundle lies: beside the app in a package, two folders above it in a checkout, or installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["find_bundle"]

_APP = Path(__file__).resolve().parents[1]


def find_bundle() -> None:
    """Make the bundle's code importable as ``scripts``, the name that its configs know it by.

    Raises:
        ImportError: when there is none.
    """
    places = [folder / "bundle" for folder in (_APP, *_APP.parents[1:2])]
    for place in places:
        if (place / "scripts").is_dir():
            if str(place) not in sys.path:
                sys.path.insert(0, str(place))
            return
    installed = find_spec("avsm")
    if installed is None:
        raise ImportError(f"the AVSM bundle is in none of {', '.join(map(str, places))}; keep the app in its checkout")
    folders = list(installed.submodule_search_locations)
    spec = spec_from_file_location("scripts", installed.origin, submodule_search_locations=folders)
    sys.modules["scripts"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["scripts"])
