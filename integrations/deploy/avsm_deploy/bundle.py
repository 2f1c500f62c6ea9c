"""Where the bundle lies: beside the app in a package, two folders above it in a checkout, or installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_APP = Path(__file__).resolve().parents[1]


def bundle_folder() -> Path:
    """The folder of the bundle, which holds ``configs`` and ``scripts``.

    Raises:
        ImportError: when there is none.
    """
    places = [_APP / "bundle", *(parent / "bundle" for parent in _APP.parents[1:2])]
    installed = find_spec("avsm")
    places += [] if installed is None else [Path(place) for place in installed.submodule_search_locations or ()]
    for place in places:
        if (place / "configs" / "inference.json").is_file() and (place / "scripts").is_dir():
            return place
    raise ImportError(f"the AVSM bundle is in none of {', '.join(map(str, places))}; keep the app in its checkout")


def add_bundle_to_path() -> None:
    """Make the bundle's code importable as ``scripts``, the name that its configs know it by."""
    folder = str(bundle_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
