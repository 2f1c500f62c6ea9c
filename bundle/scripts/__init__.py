"""AVSM: joint affine and vector-momentum stationary velocity field registration, as a MONAI bundle.

Rooms, from the ground up (a room imports only from rooms above it in this list):
``geometry`` (grids, maps, warps, Jacobians), ``io`` (files, frames, transforms in the world), ``report`` (figures and
the page of one registration), ``data`` (pairs, phantom), ``layers`` (the vSVF unit), ``losses`` (Equations 2 to 13),
``networks`` (AffineNet, MomentumNet, AVSM), ``optimize`` (one pair by optimisation), ``metrics`` (how good a
registration is, in the world), ``tracking`` (MLflow: a run's log, and the network as a registered model), ``workflow``
(training and evaluation, what the configs name), ``register`` (any two images in one call, what ``inference.json``
names), ``cli`` (the command ``avsm``). ``pyfunc.py`` is the network as MLflow loads it.
"""
