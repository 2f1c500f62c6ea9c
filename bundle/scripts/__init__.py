"""AVSM: joint affine and vector-momentum stationary velocity field registration, as a MONAI bundle.

Rooms, from the ground up (a room imports only from rooms above it in this list):
``geometry`` (grids, maps, warps, Jacobians), ``report`` and ``io`` (figures; files), ``data`` (pairs, phantom),
``layers`` (the vSVF unit), ``losses`` (Equations 2 to 13), ``networks`` (AffineNet, MomentumNet, AVSM),
``optimize``, ``workflow`` (what the configs name).
"""
