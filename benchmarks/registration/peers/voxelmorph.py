"""VoxelMorph as our engine trains it: MONAI's network in `AVSM`'s place, and its loss in the vSVF objective's.

The configs beside this file name both; ``benchmarks/`` must be on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiffusionLoss
from monai.networks.nets import VoxelMorph, VoxelMorphUNet
from torch import Tensor, nn

from scripts.geometry import affine_map, apply_affine, identity_affine, identity_map, warp
from scripts.losses import MultiKernelLNCC, common_view
from scripts.networks import AffineNet, Registration
from scripts.networks.weights import read_state

__all__ = ["VoxelMorphNet", "VoxelMorphObjective", "voxels"]


class _Float32(nn.Module):
    """A network whose convolutions may run in half precision, while what is made of its output may not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pair: Tensor) -> Tensor:
        return self.network(pair).float()


class VoxelMorphNet(nn.Module):
    """MONAI's VoxelMorph, after our affine network or alone, with the face of `AVSM` that our engine uses.

    The network sees the moving image under the affine; its displacement is composed with the affine, and the moving
    image is interpolated once. It works at full resolution: MONAI's ``half_res`` doubles velocities where the grid's
    step doubles, which should halve them.

    Args:
        affine_net: our affine network; by default with 32, 64, 128 channels and the residual composition.
        affine_weights: file with the weights of an `AVSM` whose affine stage is taken over; None for none.
        channels: of the U-Net's levels, in pairs of down and up (MONAI's and the authors').
        unet_channels: that leave the U-Net.
        final_channels: of the convolutions behind it.
        integration_steps: squarings of the diffeomorphic variant; 0 for the displacement variant.
        affine_steps: of the affine network; 0 skips the stage.
        head_std: standard deviation of the last convolution's initial weights (the authors').
    """

    def __init__(
        self,
        affine_net: AffineNet | None = None,
        affine_weights: str | None = None,
        channels: Sequence[int] = (16, 32, 32, 32, 32, 32),
        unet_channels: int = 32,
        final_channels: Sequence[int] = (16, 16),
        integration_steps: int = 7,
        affine_steps: int = 7,
        head_std: float = 1e-5,
    ) -> None:
        super().__init__()
        self.affine_net = AffineNet((32, 64, 128), composition="residual") if affine_net is None else affine_net
        if affine_weights is not None:
            load_stage(self.affine_net, affine_weights, "affine_net.")
        unet = VoxelMorphUNet(3, 2, unet_channels, tuple(channels), tuple(final_channels))
        head = [module for module in unet.modules() if isinstance(module, nn.Conv3d)][-1]
        nn.init.normal_(head.weight, std=head_std)
        nn.init.zeros_(head.bias)
        # The curriculum trains what bears this name in the phases of stage "vsvf".
        self.momentum_net = VoxelMorph(_Float32(unet), integration_steps)
        self.affine_steps = affine_steps

    def register(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine_steps: int | None = None,
        vsvf_steps: int | None = None,
        affine: Tensor | None = None,
    ) -> Registration:
        """As `AVSM.register`; the `Registration`'s displacement and map are of full resolution.

        Args:
            moving: ``(B, 1, D, H, W)``, [0, 1]; sizes that four halvings divide.
            fixed: as ``moving``.
            affine_steps: overrides the module's number of affine steps.
            vsvf_steps: 0 for the affine alone; otherwise the network is asked once, as it is made for.
            affine: Γ, ``(B, 3, 4)``, to begin with instead of asking the affine network.
        """
        steps = self.affine_steps if affine_steps is None else affine_steps
        affines = self.affine_net(moving, fixed, steps) if steps > 0 and affine is None else []
        if affine is None:
            affine = affines[-1] if affines else identity_affine(moving.shape[0], moving.device)
        shape = list(moving.shape[2:])
        still = torch.zeros(moving.shape[0], 3, *shape, device=moving.device)
        result = Registration(
            moved=warp(moving, affine_map(affine, shape)), affine=affine, displacement=still, affines=affines
        )
        if vsvf_steps != 0:
            result.displacement, _ = self.flow(result.moved, fixed)
            result.low_maps = [apply_affine(affine, identity_map(shape, still.device) + result.displacement)]
            result.moved = warp(moving, result.low_maps[0])
            result.moved_steps = [result.moved]
        return result

    def flow(self, moved: Tensor, fixed: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor | None]:
        """What ``VoxelMorph.forward`` predicts, less its own warp, which would interpolate the image a second time.

        Args:
            moved: moving image under the affine, ``(B, 1, D, H, W)``.
            fixed: as ``moved``.
            inverse: also integrate the other way.

        Returns:
            The displacement, ``(B, 3, D, H, W)`` normalised, and that of the inverse; None where not asked for or,
            for the displacement variant, not known.
        """
        network, unit = self.momentum_net, voxels(moved.shape[2:], moved.device)
        velocity = network.backbone(torch.cat([moved, fixed], dim=1))
        if not network.diffeomorphic:
            return velocity / unit, None
        return network.dvf2ddf(velocity) / unit, network.dvf2ddf(-velocity) / unit if inverse else None


def load_stage(stage: nn.Module, path: str, prefix: str) -> nn.Module:
    """Fill one stage of a network from the weights of a whole `AVSM`.

    Args:
        stage: the module.
        path: see `read_state`.
        prefix: what the stage's entries begin with.

    Returns:
        The stage.

    Raises:
        InputError: as `read_state`.
        RuntimeError: when the entries do not fit the stage.
    """
    content = read_state(path)
    stage.load_state_dict({name.removeprefix(prefix): v for name, v in content.items() if name.startswith(prefix)})
    return stage


def voxels(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Voxels in one normalised unit along each axis, corners aligned, ``(1, 3, 1, 1, 1)``."""
    return torch.tensor([(n - 1) / 2 for n in shape], device=device).view(1, 3, 1, 1, 1)


class VoxelMorphObjective(nn.Module):
    """VoxelMorph's loss of both directions: squared local correlation and the diffusion of the displacement in voxels.

    Args:
        regularisation: weight of the diffusion.
        window: of the correlation, voxels along each axis (the authors': 9).

    Raises:
        ValueError: when the weight is negative.
    """

    def __init__(self, regularisation: float = 1.0, window: int = 9) -> None:
        super().__init__()
        if regularisation < 0:
            raise ValueError(f"VoxelMorphObjective: regularisation must not be negative, got {regularisation}.")
        self.regularisation = regularisation
        # MONAI's local correlation knows of no masks, which images in random poses come with.
        self.similarity = MultiKernelLNCC((1.0,), (window,), 1 / window, dilation=1, squared=True)
        self.diffusion = DiffusionLoss()

    def forward(
        self,
        registration: Any,
        fixed: Tensor,
        epoch: int,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        moving_mask: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a both-direction batch, arguments as of `VSVFObjective`; labels and target are not used.

        Returns:
            Scalars ``loss`` and its weighted parts; ``similarity`` is 0 at identical textured images.
        """
        flow = registration.displacement * voxels(fixed.shape[2:], fixed.device)
        view = common_view(registration.map, moving_mask, fixed_mask)
        parts = {
            "similarity": 2 * self.similarity(registration.moved, fixed, view).mean(),
            "regularisation": 2 * self.regularisation * self.diffusion(flow),
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}
