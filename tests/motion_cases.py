"""A lopsided head with blobs, and motions about the middle of its grid."""

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from scripts.spatial import Frame

FIXED = Frame((40, 46, 36), np.diag((2.0, 2.0, 2.2, 1.0)))


def motion(degrees=(6, -9, 11), shift=(5, -4, 3), scale=1.0):
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = FIXED.centre + shift - matrix[:3, :3] @ FIXED.centre
    return matrix


def head():
    """A lopsided body with blobs, on ``FIXED``."""
    at = np.stack(np.meshgrid(*(np.linspace(-1.4, 1.4, n) for n in FIXED.shape), indexing="ij"))
    body = (at[0] / 0.8) ** 2 + (at[1] / 1.1) ** 2 + (at[2] / 0.7) ** 2 + 0.35 * at[0] * at[1] + 0.3 * at[2] < 1
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=FIXED.shape), 2.5)
    return gaussian_filter(body * (0.4 + 0.6 * (blobs - blobs.min()) / np.ptp(blobs)), 0.7).astype(np.float32)
