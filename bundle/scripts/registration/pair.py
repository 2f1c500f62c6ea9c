"""Registration of two images in Python, by the same config as the command, without files to read or write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import Compose

from ..formats.images import Image
from ..spatial.transform import WorldTransform
from .grids import NetworkGrids
from .read import pair_notes
from .sample import SampleOnNetworkGridd
from .update import PairUpdate, Registered
from .world import WorldTransformsd

__all__ = ["PairRegistrar", "RegisteredPair"]

_BUNDLE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RegisteredPair:
    """A registration in the world.

    Attributes:
        transform: fixed to moving points, RAS mm: what pulls the moving image onto the fixed image's grid.
        inverse: moving to fixed points, first listed, first applied.
        affine: the affine stage of ``transform``, initialisation included.
        initial: the initialisation alone.
        registered: what the method found on the network grids, with its times in seconds.
        grids: the network grids.
        notes: lines for the user, about headers and about the registration.
    """

    transform: WorldTransform
    inverse: Sequence[WorldTransform]
    affine: WorldTransform
    initial: WorldTransform
    registered: Registered
    grids: NetworkGrids
    notes: Sequence[str]


class PairRegistrar:
    """Registers any two images as ``avsm register`` does; built once, called for each pair.

    Args:
        method: one of `METHODS`.
        config_files: configs after ``configs/inference.json``, such as a data set's overrides; paths.
        overrides: config id → value, ids of parts with ``#``: ``**{"vsvf_opt#iterations": [60, 60, 30]}``.

    Raises:
        InputError: for a setting, or weights, that cannot be used.
    """

    def __init__(self, method: str = "avsm", config_files: Sequence[str | os.PathLike] = (), **overrides: Any) -> None:
        parser = ConfigParser()
        files = [_BUNDLE / "configs" / "inference.json", *config_files]
        parser.read_config([str(file) for file in files])
        parser.update({"bundle_root": str(_BUNDLE), "method": method, **overrides})
        self.device = parser.get_parsed_content("device")
        self.update: PairUpdate = parser.get_parsed_content("update")
        self.network = parser.get_parsed_content("network")
        self.inferer = parser.get_parsed_content("inferer")
        self.settings: dict[str, Any] = parser.get_parsed_content("settings")
        self.sampling = _only(SampleOnNetworkGridd, parser.get_parsed_content("preprocessing"))
        self.to_world = _only(WorldTransformsd, parser.get_parsed_content("postprocessing"))

    def __call__(
        self, fixed: Image, moving: Image, fixed_mask: Image | None = None, moving_mask: Image | None = None
    ) -> RegisteredPair:
        """Register.

        Args:
            fixed: the fixed image.
            moving: the moving image.
            fixed_mask: where in the fixed image the similarity counts; None for everywhere.
            moving_mask: the same of the moving image.

        Raises:
            InputError: for images that no grid can be laid on, see `lay_grids`.
        """
        masks = {"fixed_mask": fixed_mask, "moving_mask": moving_mask}
        images = {"fixed": fixed, "moving": moving, **{role: mask for role, mask in masks.items() if mask is not None}}
        item = self.sampling({"images": images})
        item["registered"] = self.update.register(self.network, self.inferer, item, self.device)
        item = self.to_world(item)
        return RegisteredPair(
            item["transform"],
            item["inverse"],
            item["affine_transform"],
            item["initial_transform"],
            item["registered"],
            item["grids"],
            [*pair_notes(fixed, moving), *item["registered"].notes],
        )


def _only(kind: type, steps: Compose) -> Any:
    """The one transform of a kind in a chain."""
    (found,) = (step for step in steps.transforms if isinstance(step, kind))
    return found
