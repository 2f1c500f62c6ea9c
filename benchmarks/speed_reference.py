"""The plain reference's side of every case of `speed.py`."""

from __future__ import annotations

from collections.abc import Callable

from reference import (
    ReferenceAVSM,
    affine_training_step,
    dense_mk_lncc,
    fft_smooth,
    identity_grid,
    integrate_rk4,
    upsample_map,
    vsvf_training_step,
    warp_image,
)
from speed_cases import Setting, Work, backward_too, forward_only, piece
from torch import Tensor


def build(case: str, setting: Setting) -> Work | None:
    """The case's work by the reference, None where it has none."""
    if case.endswith("blocks"):
        return None
    if not case.startswith(("smoother", "integrator", "up-sampling", "warp", "mk-LNCC")):
        return _reference_network(case, setting)
    moving, fixed = setting.images()
    field = setting.field()
    low = identity_grid(setting.low).to(setting.device)
    full = upsample_map(low + field, setting.shape)
    simple: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
        "smoother": (fft_smooth, field),
        "integrator": (lambda v: integrate_rk4(low.expand_as(v), v), field),
        "up-sampling": (lambda m: upsample_map(m, setting.shape), low + field),
        "warp": (lambda m: warp_image(moving, m), full),
        "mk-LNCC": (lambda x: dense_mk_lncc(x, fixed), moving),
    }
    return piece(case, setting, simple)


def _reference_network(case: str, setting: Setting) -> Work:
    net, (moving, fixed) = ReferenceAVSM(setting.shape).to(setting.device), setting.images()
    plain = Setting(setting.shape, setting.device)
    works: dict[str, Work] = {
        "affine pass": forward_only(plain, lambda: net.affine_net(moving, fixed)),
        "affine 7 passes": forward_only(plain, lambda: net(moving, fixed, 7, 0)),
        "momentum forward": forward_only(plain, lambda: net.momentum_net(moving, fixed)),
        "momentum forward+backward": backward_too(
            plain, lambda *_: net.momentum_net(moving, fixed), *net.momentum_net.parameters()
        ),
        "inference 7+2": lambda: net(moving, fixed, 7, 2),
        "inference 7+3": lambda: net(moving, fixed, 7, 3),
        "training affine 3": lambda: affine_training_step(net, moving, fixed, 3),
        "training vsvf 2": lambda: vsvf_training_step(net, moving, fixed, 7, 2),
    }
    return works[case]
