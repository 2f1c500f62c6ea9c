"""Registrations whose flow is known, for tests of what follows from one."""

import math

import torch

from scripts.geometry import identity_affine
from scripts.layers import VSVF
from scripts.networks import Registration
from scripts.networks.momentum_net import half_shape


def vortex(strength, shape, rise=0.5):
    """A flow of large, smooth vortices that leaves the faces alone, normalised velocity up to ``strength``.

    ``rise`` of it, along with the first axis, goes along the last one.
    """
    low = half_shape(list(shape))
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in low], indexing="ij")
    window = torch.stack([torch.cos(math.pi / 2 * axis) for axis in axes]).prod(0)
    turn = torch.stack([-axes[1], axes[0], rise * torch.sin(math.pi * axes[0])])
    velocity = (strength * window * turn)[None]
    return Registration(moved=torch.zeros(1, 1, *shape), affine=identity_affine(1),
        displacement=VSVF().advance(None, velocity), momenta=[velocity], velocities=[velocity])  # fmt: skip
