"""Transforms of images: MONAI's own, with an error where they would crop in silence."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.transforms import MapTransform, ResizeWithPadOrCrop

from ..errors import InputError


class CentreOnGridd(MapTransform):
    """Pad images ``(C, D, H, W)`` with zeros so that their centre lies on the centre of a grid; never crops.

    Raises:
        InputError: when an image is larger than the grid ``(D, H, W)``; the message names the file and both sizes.
    """

    def __init__(self, keys: Sequence[Hashable], grid: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid = tuple(int(n) for n in grid)
        self.pad = ResizeWithPadOrCrop(self.grid)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Pad the items; their affines follow."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            size = tuple(image.shape[1:])
            if any(n > limit for n, limit in zip(size, self.grid, strict=True)):
                name = getattr(image, "meta", {}).get("filename_or_obj", key)
                raise InputError(
                    f"{name}: {size} voxels at the network's spacing do not fit its grid {self.grid}; "
                    "enlarge grid or coarsen spacing"
                )
            result[key] = self.pad(image)
        return result
