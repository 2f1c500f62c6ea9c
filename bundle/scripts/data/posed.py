"""Pairs in random poses: what teaches a registration to cope with more than the data set's own misalignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.utils import generate_spatial_bounding_box
from torch import Tensor

from ..errors import InputError
from ..geometry import compose_affines, invert_affine, warp
from ..synthetic.phantom_warp import Warp
from ..synthetic.random_warp import WarpRange, grid_points, map_on_grid, random_affine, random_flow
from .dataset import apply_seeded

__all__ = ["PosedPairs", "field_of_view"]

ROLES = ("fixed", "moving")


def field_of_view(image: Tensor) -> Tensor:
    """Where an image that was padded with zeros has been seen: the box around its non-zero voxels.

    Args:
        image: ``(1, D, H, W)``.

    Returns:
        ``(1, D, H, W)`` of ones and zeros, float32; all ones where no voxel differs from zero.
    """
    image = torch.as_tensor(image).as_subclass(torch.Tensor)
    if not bool((image != 0).any()):
        return torch.ones(image.shape)
    start, end = generate_spatial_bounding_box(image, select_fn=lambda values: values != 0)
    inside = torch.zeros(image.shape)
    inside[(slice(None), *(slice(a, b) for a, b in zip(start, end, strict=True)))] = 1
    return inside


class PosedPairs(torch.utils.data.Dataset):
    """Pairs of another data set, each image in a random pose and perhaps under a random flow of its own.

    An image is interpolated once, linearly, its label by the nearest voxel. Items gain ``fixed_mask`` and
    ``moving_mask`` ``(1, D, H, W)``, where each image has been seen, so that no loss looks at where a field of view
    ends, and ``affine`` ``(3, 4)``: Γ from fixed to moving in normalised coordinates where it is known, NaN where not.
    It is known for twins: pairs whose moving image is the fixed image itself in another pose, without any flow, of
    which ``twins`` says how often they are drawn. They teach the affine network a pose exactly, whatever the
    similarity. The ``true_map`` of generated pairs, which no longer holds, is left out.

    Args:
        source: a data set of pairs on one grid: ``fixed``, ``moving`` ``(1, D, H, W)``, labels where known, ``name``.
        bounds: how far poses and flows go, a `WarpRange` or a dict of its fields.
        extent: mm of the grid's axes from the first to the last voxel; None for voxels of 1 mm.
        flow: probability that an image that is posed, and no twin, is bent by a random flow, too.
        still: probability that a pair is left as it is, but for its masks.
        twins: probability of a twin.
        augment: random MONAI transform of the finished item, of intensities; reseeded for every item.
        seed: of all draws; with (epoch, index) it decides an item.

    Raises:
        InputError: for a probability outside [0, 1] or unknown bounds.
    """

    def __init__(
        self,
        source: torch.utils.data.Dataset,
        bounds: WarpRange | Mapping[str, Any] | None = None,
        extent: Sequence[float] | None = None,
        flow: float = 0.0,
        still: float = 0.0,
        twins: float = 0.0,
        augment: Callable | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("flow", flow), ("still", still), ("twins", twins)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value}; give a probability from 0 to 1")
        try:
            self.bounds = bounds if isinstance(bounds, WarpRange) else WarpRange(**(bounds or {}))
        except TypeError as error:
            raise InputError(f"bounds={bounds}: {str(error).split('() ')[-1]}; see the fields of WarpRange") from error
        self.source, self.extent, self.augment = source, extent, augment
        self.flow, self.still, self.twins, self.seed = flow, still, twins, int(seed)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, of the draws and of the source."""
        self._epoch.fill_(int(epoch))
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        key = (self.seed, int(self._epoch), index)
        given = self.source[index]
        state = np.random.SeedSequence((*key, 1)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) % 2**63)
        still, twin = (float(x) for x in torch.rand(2, generator=generator))
        item = {name: value for name, value in given.items() if name not in _REPLACED}
        twin_drawn = twin < self.twins
        poses = []
        for role in ROLES:
            origin = "fixed" if twin_drawn else role
            moves = twin_drawn or still >= self.still
            # A flow of its own would make a twin's affine a guess.
            flow = 0.0 if twin_drawn else self.flow
            found, pose = self._posed(given[origin], given.get(f"{origin}_label"), moves, flow, generator)
            item |= {f"{role}{suffix}": value for suffix, value in found.items()}
            poses.append(pose)
        if twin_drawn:
            fixed, moving = (pose[None] for pose in poses)
            item["affine"] = compose_affines(invert_affine(moving), fixed)[0]
        else:
            item["affine"] = torch.full((3, 4), torch.nan)
        return item if self.augment is None else apply_seeded(self.augment, item, key)

    def _posed(
        self, image: Tensor, label: Tensor | None, moves: bool, flow: float, generator: torch.Generator
    ) -> tuple[dict[str, MetaTensor], Tensor]:
        """An image, its mask and label in a pose, and the pose's affine (3, 4): posed grid → image."""
        affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4, dtype=torch.float64)
        image = torch.as_tensor(image).as_subclass(torch.Tensor).float()
        shape = list(image.shape[1:])
        layers = {"": image, "_mask": field_of_view(image)}
        if label is not None:
            layers["_label"] = torch.as_tensor(label).as_subclass(torch.Tensor).float()
        pose = torch.eye(4)[:3]
        if moves:
            extent = [n - 1.0 for n in shape] if self.extent is None else self.extent
            step = random_affine(generator, extent, self.bounds)
            steps: list[Any] = [step]
            pose = torch.cat([step.matrix, step.offset.view(3, 1)], dim=1).float()
            bent = float(torch.rand(1, generator=generator)) < flow
            if bent:
                steps.insert(0, random_flow(generator, shape, extent, self.bounds))
            chain = Warp(tuple(steps))
            where = (map_on_grid(chain, shape) if bent else chain(grid_points(shape)).view(3, *shape)).float()[None]
            both = warp(torch.cat([layers[""], layers["_mask"]])[None], where)[0]
            layers[""], layers["_mask"] = both[:1], both[1:]
            if label is not None:
                layers["_label"] = warp(layers["_label"][None], where, mode="nearest")[0]
        return {suffix: MetaTensor(layer, affine=affine.clone()) for suffix, layer in layers.items()}, pose


_REPLACED = {f"{role}{suffix}" for role in ROLES for suffix in ("", "_label", "_mask")} | {"true_map"}
