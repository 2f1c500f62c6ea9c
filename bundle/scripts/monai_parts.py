"""The parts of MONAI that a registration needs, its blocks and its config parser, without the rest of MONAI.

``import monai`` loads every module that MONAI has, and with them Ignite, matplotlib, pandas and ITK: about 5 seconds,
for a command that needs the tenth of a second of two of them. A process that has not imported MONAI gets these modules
from their own files; a later ``import monai`` finds nothing of that and is the usual one.
"""

from __future__ import annotations

import contextlib
import os
import pydoc
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["ConfigParser", "Convolution", "ResidualUnit", "UNet", "config_parser", "set_determinism"]

# Packages whose `__init__` would load all that they hold.
_PACKAGES = ("monai", *(f"monai.{name}" for name in ("apps", "bundle", "networks")))
_PACKAGES += tuple(f"monai.networks.{name}" for name in ("blocks", "layers", "nets"))
# Packages that the modules load where they are installed, and can do without.
_UNUSED = ("ignite", "matplotlib", "pandas")


@contextlib.contextmanager
def _bare_packages() -> Iterator[None]:
    """Packages of MONAI whose `__init__` has not run; afterwards `sys.modules` holds nothing of them."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
    root = find_spec("monai").submodule_search_locations[0]
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = ["/".join([root, *name.split(".")[1:]])]
        package.__version__ = metadata.version("monai")
        sys.modules[name] = package
    sys.modules.update(dict.fromkeys(hidden))
    try:
        # What the modules ask their packages for.
        sys.modules["monai.networks.blocks"].ADN = import_module("monai.networks.blocks.acti_norm").ADN
        # The parser would import MONAI for its expressions and to instantiate.
        import_module("monai.bundle.config_parser")._default_globals = {}
        import_module("monai.bundle.config_item").instantiate = _instantiate
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        for name in [name for name in sys.modules if name.split(".")[0] == "monai"]:
            del sys.modules[name]


def _instantiate(path: str, mode: str, **options: Any) -> Any:
    """MONAI's `instantiate` in its default mode, which does not load MONAI."""
    component = pydoc.locate(path)
    if component is None:
        raise ModuleNotFoundError(f"{path}: no such class or function")
    return component(**options)


with contextlib.nullcontext() if "monai" in sys.modules else _bare_packages():
    from monai.bundle.config_parser import ConfigParser
    from monai.bundle.utils import merge_kv
    from monai.networks.blocks.convolutions import Convolution, ResidualUnit
    from monai.networks.nets.unet import UNet
    from monai.utils.misc import set_determinism


def config_parser(files: Sequence[str | os.PathLike]) -> ConfigParser:
    """A parser of config files, later ones before earlier ones, as ``python -m monai.bundle run`` merges them.

    Its expressions know what the configs import, and nothing else (MONAI would be loaded for it).

    Args:
        files: ``.json`` or ``.yaml``.
    """
    parser = ConfigParser(config={}, globals=False)
    for file in files:
        for name, value in ConfigParser.load_config_file(file).items():
            merge_kv(parser, name, value)
    return parser
