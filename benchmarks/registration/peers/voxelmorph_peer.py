"""VoxelMorph with weights that our engine has trained, see `voxelmorph`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.formats import Image
from scripts.geometry import identity_affine
from scripts.networks import AffineNet, load_weights, weights_hash
from scripts.registration import Pair, inference_parser
from scripts.spatial import WorldTransform

from .base import Found, Peer, affine_inverse, undo_field
from .voxelmorph import VoxelMorphNet

__all__ = ["WEIGHTS", "VoxelMorphPeer"]

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = Path(os.environ.get("AVSM_BENCHMARK_WEIGHTS", ROOT / "bench" / "weights"))
"""Folder of the trained networks, one folder a run; AVSM_BENCHMARK_WEIGHTS names another."""


class VoxelMorphPeer(Peer):
    """One trained VoxelMorph; both images are laid on its grid as our network's are.

    Args:
        name: how tables call it.
        run: folder of its training in `WEIGHTS`, or a path; its ``model.pt`` is taken.
        integration_steps: as in training; 0: displacement variant.
        affine_steps: of our affine network before it; 0: none.
        grid: the network's, as in training; None: as large as the default network's for these images.
        spacing: of the grid in mm, as in training; None: as the images' extents ask for.
        affine_net: arguments of the `AffineNet` before it, as in training; None: that of `VoxelMorphNet`.
        device: torch device.
    """

    module = "monai"
    distribution = "monai"

    def __init__(
        self,
        name: str = "VoxelMorph",
        run: str | os.PathLike = "voxelmorph",
        integration_steps: int = 7,
        affine_steps: int = 7,
        grid: Sequence[int] | None = (48, 64, 48),
        spacing: Sequence[float] | None = (1.0, 1.0, 1.0),
        affine_net: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            name,
            integration_steps=integration_steps,
            affine_steps=affine_steps,
            grid=None if grid is None else list(grid),
            spacing=None if spacing is None else list(spacing),
            affine_net=None if affine_net is None else dict(affine_net),
            device=device,
        )
        self.weights = WEIGHTS / run / "model.pt"

    def missing(self) -> str | None:
        """The weights, most often."""
        if not self.weights.is_file():
            return f"{self.name}: not trained, no {self.weights.parent.name}/{self.weights.name}; see peers/README.md"
        return super().missing()

    def parameters(self) -> dict[str, Any]:
        """With the hash of the weights."""
        sha256 = weights_hash(self.weights) if self.weights.is_file() else None
        return {**super().parameters(), "weights_sha256": sha256}

    def load(self, threads: int) -> None:
        """Read the weights, once."""
        self._network()

    def _network(self) -> VoxelMorphNet:
        settings = self.settings
        affine_net = json.dumps(settings["affine_net"])
        return _load(
            self.weights, settings["integration_steps"], settings["affine_steps"], settings["device"], affine_net
        )

    def register(self, fixed: Image, moving: Image, threads: int) -> Found:
        """Sample, ask the network, and say it in millimetres."""
        network, before = self._network(), torch.get_num_threads()
        grid, spacing = (
            None if value is None else list(value) for value in map(self.settings.get, ("grid", "spacing"))
        )
        sample = inference_parser(grid=grid, network_spacing=spacing).get_parsed_content("sampling")
        torch.set_num_threads(threads)
        try:
            sampled = sample({"pair": Pair(fixed, moving)})["sampled"].to(self.settings["device"])
            pair = (sampled.moving, sampled.fixed)
            with torch.no_grad():
                found = network.register(*pair, vsvf_steps=0)
                forward, back = network.flow(found.moved, pair[1], inverse=True)
        finally:
            torch.set_num_threads(before)
        grids = sampled.grids
        affine = WorldTransform.from_network(grids.fixed, grids.moving, found.affine)
        transform = WorldTransform.from_network(grids.fixed, grids.moving, found.affine, forward)
        inverse = None
        if back is not None:
            field = WorldTransform.from_network(grids.fixed, grids.fixed, identity_affine(1), back)
            field = WorldTransform(np.eye(4), field.displacement, field.frame)
            there = affine_inverse(affine).apply(moving.frame.corners)
            inverse = undo_field(affine.linear, field.covering_points(there))
        stage = [affine] if self.settings["affine_steps"] else None
        return Found([transform.covering(fixed.frame)], inverse, stage)


@lru_cache(maxsize=2)
def _load(weights: Path, integration_steps: int, affine_steps: int, device: str, affine_net: str) -> VoxelMorphNet:
    options = json.loads(affine_net)
    affine = None if options is None else AffineNet(**options)
    network = VoxelMorphNet(affine, integration_steps=integration_steps, affine_steps=affine_steps)
    return load_weights(network, weights).to(device).eval()
