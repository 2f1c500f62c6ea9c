"""A plain implementation of the paper's choices, to measure ours against in one run.

Written from the paper and from a description of what its authors' software computes; shares no code with either, and
none with the bundle. Nothing here is tuned: affine passes at full resolution, two directions one after the other,
windows summed by convolution with ones, smoothing by FFT, RK4 with autograd through all stages.

Maps are ``(B, 3, D, H, W)`` normalised coordinates, channel c along array axis c, as in the bundle.
"""

from .affine import ReferenceAffineNet, affine_pair
from .momentum import ReferenceMomentumNet
from .pipeline import ReferenceAVSM, affine_training_step, vsvf_training_step
from .similarity import dense_correlation, dense_mk_lncc
from .vsvf import fft_smooth, identity_grid, integrate_rk4, upsample_map, warp_image

__all__ = [
    "ReferenceAVSM",
    "ReferenceAffineNet",
    "ReferenceMomentumNet",
    "affine_pair",
    "affine_training_step",
    "dense_correlation",
    "dense_mk_lncc",
    "fft_smooth",
    "identity_grid",
    "integrate_rk4",
    "upsample_map",
    "vsvf_training_step",
    "warp_image",
]
