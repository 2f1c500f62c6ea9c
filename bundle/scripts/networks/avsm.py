"""AVSM (Figure 1): affine steps, then vSVF steps, maps composed, the moving image interpolated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import List, Optional

import torch
from torch import Tensor, nn

from ..geometry import affine_map, apply_affine, identity_affine, identity_map, resize_map, warp
from ..layers import VSVF, checkpointed, uses_checkpointing
from .affine_net import AffineNet
from .momentum_net import MomentumNet, half_shape


@dataclass
class Registration:
    """What a registration of moving to fixed images yields. All maps are on the fixed grid unless said otherwise.

    Maps of full resolution are made from those of low resolution when they are asked for: training, which does without
    them, would otherwise keep them all.

    Attributes:
        moved: moving image under the final map, interpolated once from the original, ``(B, 1, D, H, W)``.
        affine: final affine Γ, ``(B, 3, 4)``.
        affines: Γ⁽¹⁾ ... Γ⁽ᵗ⁾ (empty with no affine step).
        low_maps: φ⁻¹_(1) ... φ⁻¹_(T), one a vSVF step, ``(B, 3, d, h, w)`` on the half-resolution grid.
        moved_steps: the moving image under each of ``maps``.
        momenta: m₀(1) ... m₀(T), ``(B, 3, d, h, w)`` on the half-resolution grid.
        velocities: v₀(1) ... v₀(T), as the momenta.
        displacement: ψ_T - id, low resolution, with φ⁻¹_(T) = Φ⁻¹ₐ ∘ ψ_T.
        classes: what the features see in the fixed image, ``(B, L, D, H, W)``; None without features.
        composed: whether ``displacement`` was composed of steps on grids of their own, and is not integrated anew.
    """

    moved: Tensor
    affine: Tensor
    displacement: Tensor
    affines: list[Tensor] = field(default_factory=list)
    low_maps: list[Tensor] = field(default_factory=list)
    moved_steps: list[Tensor] = field(default_factory=list)
    momenta: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)
    classes: Tensor | None = None
    composed: bool = False

    @property
    def shape(self) -> list[int]:
        """The fixed grid's size ``(D, H, W)``."""
        return list(self.moved.shape[2:])

    @cached_property
    def affine_map(self) -> Tensor:
        """Map of the affine alone, ``(B, 3, D, H, W)``."""
        return affine_map(self.affine, self.shape)

    @cached_property
    def maps(self) -> list[Tensor]:
        """φ⁻¹_(1) ... φ⁻¹_(T) at full resolution, ``(B, 3, D, H, W)``."""
        return [resize_map(low, self.shape) for low in self.low_maps]

    @cached_property
    def map(self) -> Tensor:
        """Final map φ⁻¹, ``(B, 3, D, H, W)`` normalised coordinates, fixed → moving."""
        return resize_map(self.low_maps[-1], self.shape) if self.low_maps else self.affine_map


def _warp_low(image: Tensor, low_map: Tensor) -> Tensor:
    """The image under a low-resolution map, up-sampled to the image's grid."""
    return warp(image, resize_map(low_map, list(image.shape[2:])))


class AVSM(nn.Module):
    """The whole network: ``affine_steps`` of `AffineNet`, then ``vsvf_steps`` of `MomentumNet` + `VSVF`.

    Args:
        affine_net: the affine network.
        momentum_net: the momentum network.
        vsvf: the vSVF unit.
        affine_steps: affine steps of `forward` (the paper trains 3 or 5 and tests 7); 0 skips the stage.
        vsvf_steps: vSVF steps of `forward` (the paper trains 2 and tests up to 8); 0 skips the stage.
        features: of each image alone, ``(B, 1, D, H, W)`` → ``(B, L, D, H, W)``, see `FeatureNet`. They guide the
            engine; the networks do not see them. None for none.
        checkpointing: gradient checkpointing of the momentum network (pair by pair), the vSVF unit and the warp: saves
            most of a training's memory for about a quarter more time. None: as `uses_checkpointing` decides, for large
            images on the CPU.
        vsvf_factors: how much coarser a grid the momentum network looks on (`MomentumNet.forward`) in the first,
            second, ... vSVF step; the last holds for all that follow, and of fewer steps it is the first that are left
            out. From coarse to fine, as ``(4, 2, 1)``, it finds what moves farther than its windows reach; ``(1,)``,
            the paper's, looks at full resolution in every step.

    Raises:
        ValueError: when a number of steps is negative, or a factor is not a whole number from 1 on.
    """

    def __init__(
        self,
        affine_net: AffineNet | None = None,
        momentum_net: MomentumNet | None = None,
        vsvf: VSVF | None = None,
        affine_steps: int = 7,
        vsvf_steps: int = 2,
        checkpointing: Optional[bool] = None,
        features: nn.Module | None = None,
        vsvf_factors: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        if affine_steps < 0 or vsvf_steps < 0:
            raise ValueError(f"AVSM: steps must not be negative, got {affine_steps} affine and {vsvf_steps} vSVF.")
        if not vsvf_factors or any(isinstance(n, bool) or int(n) != n or n < 1 for n in vsvf_factors):
            raise ValueError(
                f"AVSM: vsvf_factors must be whole numbers from 1 on, at least one, got {list(vsvf_factors)}."
            )
        self.features = features
        self.affine_net = AffineNet() if affine_net is None else affine_net
        self.momentum_net = MomentumNet() if momentum_net is None else momentum_net
        self.vsvf = VSVF() if vsvf is None else vsvf
        self.affine_steps = affine_steps
        self.vsvf_steps = vsvf_steps
        self.checkpointing = checkpointing
        self.vsvf_factors = [int(n) for n in vsvf_factors]

    def factor(self, step: int, steps: int) -> int:
        """How much coarser the momentum network looks in one of so many vSVF steps, counted from 0."""
        last = len(self.vsvf_factors) - 1
        return self.vsvf_factors[min(step + max(0, last + 1 - steps), last)]

    def forward(self, image: Tensor) -> Tensor:
        """One tensor in, one tensor out, for export and generic tools; see `register` for all else.

        Args:
            image: ``(B, 2, D, H, W)``, channels [moving, fixed], intensities in [0, 1], any size.

        Returns:
            ``(B, 4, D, H, W)``: [moved, map]; the map's 3 channels are normalised coordinates in D, H, W order.
        """
        moving, fixed = image[:, :1], image[:, 1:2]
        affine = identity_affine(image.shape[0], image.device)
        if self.affine_steps > 0:
            affine = self.affine_net(moving, fixed, self.affine_steps)[-1]
        coordinates = self.deform(moving, fixed, affine, self.vsvf_steps)
        return torch.cat([warp(moving, coordinates), coordinates], dim=1)

    def low_map(self, affine: Tensor, displacement: Tensor) -> Tensor:
        """φ⁻¹ = Φ⁻¹ₐ ∘ (id + u) on the low-resolution grid of u; arguments as `full_map`."""
        low = displacement.shape[2:]
        inner = identity_map(low, displacement.device, displacement.dtype) + displacement
        return apply_affine(affine, inner)

    def full_map(self, affine: Tensor, displacement: Tensor, shape: List[int]) -> Tensor:
        """φ⁻¹ = Φ⁻¹ₐ ∘ (id + u) at full resolution: composed on the low-resolution grid, up-sampled once.

        Args:
            affine: ``(B, 3, 4)``.
            displacement: u, ``(B, 3, d, h, w)``.
            shape: full size ``(D, H, W)``.
        """
        return resize_map(self.low_map(affine, displacement), shape)

    def deform(self, moving: Tensor, fixed: Tensor, affine: Tensor, steps: int) -> Tensor:
        """The final map φ⁻¹_(T) alone, for inference; with no step, the affine map."""
        shape = fixed.shape[2:]
        coordinates = affine_map(affine, shape)
        u: Optional[Tensor] = None
        for step in range(steps):
            u, _velocity = self.vsvf(self.momentum_net(warp(moving, coordinates), fixed, self.factor(step, steps)), u)
            coordinates = self.full_map(affine, u, shape)
        return coordinates

    def register(
        self,
        moving: Tensor,
        fixed: Tensor,
        affine_steps: Optional[int] = None,
        vsvf_steps: Optional[int] = None,
        affine: Optional[Tensor] = None,
    ) -> Registration:
        """Register, with everything that losses, metrics and writers need.

        Args:
            moving: ``(B, 1, D, H, W)``, [0, 1].
            fixed: ``(B, 1, D, H, W)``, the same grid.
            affine_steps: overrides the module's number of affine steps.
            vsvf_steps: overrides the module's number of vSVF steps.
            affine: Γ, ``(B, 3, 4)``, to begin the vSVF stage with instead of asking the affine network.

        Returns:
            The `Registration`; its maps carry gradients of whatever stage has trainable parameters.

        Raises:
            ValueError: when the images' shapes differ or are not ``(B, 1, D, H, W)``, or steps are negative.
        """
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
            raise ValueError(
                f"register: moving and fixed must both be (B, 1, D, H, W) on one grid, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        n_affine = self.affine_steps if affine_steps is None else affine_steps
        n_vsvf = self.vsvf_steps if vsvf_steps is None else vsvf_steps
        if n_affine < 0 or n_vsvf < 0:
            raise ValueError(f"register: steps must not be negative, got {n_affine} affine and {n_vsvf} vSVF.")
        affines = self.affine_net(moving, fixed, n_affine) if n_affine > 0 and affine is None else []
        if affine is None:
            affine = affines[-1] if affines else identity_affine(moving.shape[0], moving.device)
        result = self._begin(moving, affine)
        result.affines, result.classes = affines, None if self.features is None else self.features(fixed)
        saving = uses_checkpointing(moving, self.checkpointing)
        for step in range(n_vsvf):
            factor = self.factor(step, n_vsvf)
            if saving:
                rows = zip(result.moved.split(1), fixed.split(1), strict=True)
                momentum = torch.cat([checkpointed(True, self.momentum_net, *row, factor) for row in rows])
            else:
                momentum = self.momentum_net(result.moved, fixed, factor)
            self._advance(result, moving, momentum)
        return result

    def integrate(self, moving: Tensor, affine: Tensor, momenta: Sequence[Tensor]) -> Registration:
        """The registration of given parameters, without the networks: what optimisation works on.

        Args:
            moving: ``(B, 1, D, H, W)``; the fixed grid is its own.
            affine: Γ, ``(B, 3, 4)``.
            momenta: m₀(1) ... m₀(T), ``(B, 3, d, h, w)`` on the half-resolution grid.

        Returns:
            The `Registration`, with gradients to affine and momenta.
        """
        result = self._begin(moving, affine)
        for momentum in momenta:
            self._advance(result, moving, momentum)
        return result

    def composed(
        self,
        moving: Tensor,
        affine: Tensor,
        displacement: Tensor,
        momenta: Sequence[Tensor],
        velocities: Sequence[Tensor],
    ) -> Registration:
        """The registration of a displacement that is taken as it is.

        Args:
            moving: ``(B, 1, D, H, W)``; the fixed grid is its own.
            affine: Γ, ``(B, 3, 4)``.
            displacement: ψ - id, ``(B, 3, d, h, w)`` on the half-resolution grid.
            momenta: behind it, on grids of their own.
            velocities: as ``momenta``.
        """
        low = self.low_map(affine, displacement)
        moved = _warp_low(moving, low)
        return Registration(
            moved=moved,
            affine=affine,
            displacement=displacement,
            low_maps=[low],
            moved_steps=[moved],
            momenta=list(momenta),
            velocities=list(velocities),
            composed=True,
        )

    def _begin(self, moving: Tensor, affine: Tensor) -> Registration:
        """The registration by an affine alone."""
        shape = list(moving.shape[2:])
        return Registration(
            moved=warp(moving, affine_map(affine, shape)),
            affine=affine,
            displacement=torch.zeros(moving.shape[0], 3, *half_shape(shape), device=moving.device),
        )

    def _advance(self, result: Registration, moving: Tensor, momentum: Tensor) -> None:
        """One vSVF step further."""
        velocity = self.vsvf.smoother(momentum)
        before = result.displacement if result.low_maps else None
        saving = uses_checkpointing(moving, self.checkpointing)
        result.displacement = checkpointed(saving, self.vsvf.advance, before, velocity)
        low = self.low_map(result.affine, result.displacement)
        result.moved = checkpointed(saving, _warp_low, moving, low)
        result.momenta.append(momentum)
        result.velocities.append(velocity)
        result.low_maps.append(low)
        result.moved_steps.append(result.moved)


def bare_network() -> AVSM:
    """An `AVSM` without networks and weights, whose maps alone are used."""
    return AVSM(nn.Identity(), nn.Identity(), affine_steps=0, vsvf_steps=0)
