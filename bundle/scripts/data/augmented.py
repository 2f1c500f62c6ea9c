"""Pairs under random affine maps and flows: a registration learns from them to cope with more than its own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.utils import generate_spatial_bounding_box
from torch import Tensor
from torch.utils.data import Dataset

from ..geometry import compose_affines, invert_affine, warp
from ..synthetic.generated import checked_probabilities
from ..synthetic.seeded import SeededDataset
from ..synthetic.warps import Warp, WarpRange, grid_points, map_on_grid, random_affine, random_flow, warp_range

_ROLES = ("fixed", "moving")
_REPLACED = {f"{role}{suffix}" for role in _ROLES for suffix in ("", "_label", "_mask")}


def field_of_view(image: Tensor) -> Tensor:
    """Where an image ``(1, D, H, W)`` that was padded with zeros has been seen: the box around its non-zero voxels.

    Ones and zeros, float32; all ones where no voxel differs from zero.
    """
    image = torch.as_tensor(image).as_subclass(torch.Tensor)
    if not bool((image != 0).any()):
        return torch.ones(image.shape)
    start, end = generate_spatial_bounding_box(image, select_fn=lambda values: values != 0)
    inside = torch.zeros(image.shape)
    inside[(slice(None), *(slice(a, b) for a, b in zip(start, end, strict=True)))] = 1
    return inside


class AugmentedPairs(SeededDataset):
    """Pairs of another data set, each image in a random pose and perhaps under a random flow of its own.

    An image is interpolated once, linearly, its label by the nearest voxel. Items gain ``fixed_mask`` and
    ``moving_mask`` ``(1, D, H, W)``, where each image has been seen, so that no loss looks at where a field of view
    ends, and ``affine`` ``(3, 4)``: Γ from fixed to moving in normalised coordinates where it is known, NaN where not.
    It is known for twins: pairs whose moving image is the fixed image itself in another pose, without any flow. They
    teach the affine network a pose exactly, whatever the similarity.

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
        source: Dataset,
        bounds: WarpRange | Mapping[str, Any] | None = None,
        extent: Sequence[float] | None = None,
        flow: float = 0.0,
        still: float = 0.0,
        twins: float = 0.0,
        augment: Callable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, augment, [source])
        checked_probabilities(flow=flow, still=still, twins=twins)
        self.bounds = warp_range(bounds)
        self.source, self.extent = source, extent
        self.flow, self.still, self.twins = flow, still, twins

    def __len__(self) -> int:
        return len(self.source)

    def item(self, key: tuple[int, int, int]) -> dict:
        """The pair of (seed, epoch, index) in its pose."""
        given = self.source[key[2]]
        state = np.random.SeedSequence((*key, 1)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) % 2**63)
        still, twin = (float(x) for x in torch.rand(2, generator=generator))
        twin, moves = twin < self.twins, still >= self.still
        item = {name: value for name, value in given.items() if name not in _REPLACED}
        poses = []
        for role in _ROLES:
            origin = "fixed" if twin else role
            # A flow of its own would make a twin's affine a guess.
            flow = 0.0 if twin else self.flow
            found, pose = self._posed(given[origin], given.get(f"{origin}_label"), twin or moves, flow, generator)
            item |= {f"{role}{suffix}": value for suffix, value in found.items()}
            poses.append(pose[None])
        fixed, moving = poses
        known = compose_affines(invert_affine(moving), fixed)[0]
        return {**item, "affine": known if twin else torch.full((3, 4), torch.nan)}

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
