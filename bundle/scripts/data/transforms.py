"""Transforms of images that MONAI lacks: onto the centre of a grid without cropping in silence, to other greys."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform, ResizeWithPadOrCrop

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


class RandGreysd(RandomizableTransform, MapTransform):
    """Replace the greys of images ``(C, D, H, W)`` in [0, 1] by random ones, as of another sequence.

    As many greys as ``knots``, evenly spaced, get new ones in random order, those between them what lies between; 0,
    what is outside the field of view, stays. Each key gets greys of its own, with probability ``prob`` each. MONAI's
    ``RandHistogramShiftd`` keeps the order of greys, which two sequences do not share.
    """

    def __init__(
        self, keys: Sequence[Hashable], prob: float = 0.5, knots: int = 4, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.knots = knots

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """The items with other greys."""
        result = dict(data)
        for key in self.key_iterator(result):
            self.randomize(None)
            # One in each of equal steps, so that some greys always differ.
            values = (self.R.permutation(self.knots) + self.R.uniform(size=self.knots)) / self.knots
            if self._do_transform:
                result[key] = self._replaced(result[key], torch.from_numpy(values.astype(np.float32)))
        return result

    def _replaced(self, image: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        place = image.clamp(0, 1) * (self.knots - 1)
        low = place.floor().clamp(max=self.knots - 2).long()
        values = values.to(image.device)
        greys = torch.lerp(values[torch.as_tensor(low)], values[torch.as_tensor(low + 1)], torch.as_tensor(place - low))
        return torch.where(image == 0, image, 0.02 + 0.98 * greys)
