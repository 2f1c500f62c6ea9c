"""The bundle's side of every case of `speed.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from speed_cases import Setting, Work, autocast, backward_too, forward_only, piece
from torch import Tensor

from scripts.geometry import identity_map, resize_map, warp
from scripts.layers import VSVF
from scripts.losses import AffineObjective, MultiKernelLNCC, VSVFObjective
from scripts.networks import AVSM, AffineNet, MomentumNet

NETWORKS = {
    "fast": {"channels": (16, 32, 32, 96, 256), "stem": "quarter"},
    "wide": {"channels": (16, 32, 48, 128, 256), "stem": "quarter"},
    "half": {"channels": (16, 32, 64, 96, 128), "stem": "space_to_depth"},
}
"""Momentum networks to measure: finest features at a quarter of the grid (two widths), and at half of it."""


def network(setting: Setting) -> AVSM:
    """The network with random weights."""
    net = AVSM(AffineNet(), MomentumNet(**NETWORKS[setting.network])).to(setting.device)
    if setting.compiled:
        net.momentum_net = torch.compile(net.momentum_net)
    return net


def train(setting: Setting, stage: str) -> Work:
    """One training step of ours: both directions in a batch, as ``scripts.workflow.TrainingUpdate`` does it."""
    net = network(setting).train()
    net.affine_net.requires_grad_(stage == "affine")
    net.momentum_net.requires_grad_(stage == "vsvf")
    first, second = setting.images()
    moving, fixed = torch.cat([first, second]), torch.cat([second, first])
    steps = {"affine_steps": 3, "vsvf_steps": 0} if stage == "affine" else {"affine_steps": 7, "vsvf_steps": 2}
    objective = AffineObjective() if stage == "affine" else VSVFObjective()

    def run() -> None:
        net.zero_grad(set_to_none=True)
        with autocast(setting):
            registration = net.register(moving, fixed, **steps)
        objective(registration, fixed, 0)["loss"].backward()

    return run


def infer(setting: Setting, vsvf_steps: int) -> Work:
    """Inference of ours with 7 affine steps."""
    net, (moving, fixed) = network(setting).eval(), setting.images()
    net.affine_steps, net.vsvf_steps = 7, vsvf_steps
    return forward_only(setting, lambda: net(torch.cat([moving, fixed], dim=1)))


def infer_blockwise(setting: Setting) -> Work:
    """A large pair through the network's own grid of half the size, the result sampled in blocks at full size."""
    from scripts.spatial import Frame, WorldTransform, resample_image

    net, (moving, fixed) = network(setting).eval(), setting.images()
    frame = Frame.from_parts(setting.shape, (0.5, 0.5, 0.5), (0, 0, 0), torch.eye(3).numpy())
    coarse = frame.resized(setting.low)

    def work() -> object:
        small = [
            F.interpolate(F.avg_pool3d(x, 3, 1, 1), size=setting.low, mode="trilinear", align_corners=True)
            for x in (moving, fixed)
        ]
        found = net.register(*small, affine_steps=7, vsvf_steps=2)
        transform = WorldTransform.from_network(coarse, coarse, found.affine, found.displacement)
        return resample_image(moving[0, 0].cpu().numpy(), frame, frame, [transform])

    return forward_only(setting, work)


def build(case: str, setting: Setting) -> Work:
    """The case's work by the bundle.

    Raises:
        KeyError: for an unknown case.
    """
    if case.startswith("inference 7+"):
        return infer_blockwise(setting) if case.endswith("blocks") else infer(setting, int(case[-1]))
    if case in ("training affine 3", "training vsvf 2"):
        return train(setting, case.split()[1])
    moving, fixed = setting.images()
    if case in ("affine pass", "affine 7 passes"):
        net, passes = network(setting).affine_net.eval(), 1 if case == "affine pass" else 7
        return forward_only(setting, lambda: net(moving, fixed, passes))
    if case == "momentum forward":
        net = network(setting).momentum_net.eval()
        return forward_only(setting, lambda: net(moving, fixed))
    if case == "momentum forward+backward":
        net = network(setting).momentum_net
        return backward_too(setting, lambda *_: net(moving, fixed), *net.parameters())
    field, unit = setting.field(), VSVF().to(setting.device)
    start = identity_map(list(setting.low), setting.device) + field
    full = resize_map(start, list(setting.shape))
    similarity = MultiKernelLNCC()
    simple: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
        "smoother": (unit.smoother, field),
        "integrator": (lambda v: unit.advance(None, v), field),
        "up-sampling": (lambda m: resize_map(m, list(setting.shape)), start),
        "warp": (lambda m: warp(moving, m), full),
        "mk-LNCC": (lambda x: similarity(x, fixed), moving),
    }
    return piece(case, setting, simple)
