"""Frames, maps and images that the tests of world transforms share."""

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from scripts.formats import save_displacement_blocks
from scripts.geometry import apply_affine, identity_map, resize_map
from scripts.spatial.frame import Frame, ras_to_lps

SHAPE = (20, 23, 18)
LOW = (10, 12, 9)
LABELS = np.array([0, 1, 2, 7, 250], dtype=np.uint8)
AFFINE = torch.tensor([[[0.9, 0.08, -0.05, 0.04], [-0.06, 0.85, 0.03, -0.07], [0.02, 0.05, 0.95, 0.03]]])


def frame(shape=SHAPE, angles=(0, 0, 0), spacing=(1, 1, 1), origin=(0, 0, 0), flip=(1, 1, 1), order=(0, 1, 2)):
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(flip)[:, list(order)]
    return Frame.from_parts(shape, spacing, origin, direction)


OBLIQUE = frame(SHAPE, (12, -25, 40), (0.8, 1.6, 2.5), (-71.3, 44.0, 310.5))
OTHER = frame((17, 25, 22), (-30, 8, 15), (1.1, 0.9, 2.0), (25.0, -90.2, -12.0), (-1, 1, 1), (2, 0, 1))
FRAMES = {  # fixed, moving
    "identity": (frame(), frame()),
    "anisotropic": (frame(spacing=(0.7, 1.3, 3)), frame(spacing=(0.7, 1.3, 3))),
    "shifted": (frame(origin=(10, -20, 30)), frame(origin=(-5, 60, 7.5))),
    "flipped": (frame(flip=(-1, -1, 1)), frame(flip=(1, -1, -1), origin=(3, 2, 1))),
    "permuted": (frame(order=(2, 0, 1)), frame(order=(1, 2, 0), spacing=(2, 1, 0.5))),
    "oblique": (OBLIQUE, OBLIQUE),
    "oblique, other size": (OBLIQUE, OTHER),
    "near half a turn": (frame(SHAPE, (0, 0, 179.99), (1, 2, 3), (100, 200, -300)), OTHER),
}


def displacement(low=LOW, size=0.06):
    """A bending in normalised units on a low-resolution grid, not zero at its faces."""
    x = identity_map(list(low))
    return size * torch.stack([torch.sin(3 * x[:, 1]), torch.cos(2 * x[:, 2]), torch.sin(4 * x[:, 0])], dim=1)


def full_map(shape=SHAPE, low=LOW):
    """The network's map of `AFFINE` and `displacement`: composed at low resolution, upsampled once."""
    return resize_map(apply_affine(AFFINE, identity_map(list(low)) + displacement(low)), list(shape))


def noise(shape, seed=0):
    """A smooth random image in [0, 1], float32."""
    image = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return ((image - image.min()) / (image.max() - image.min())).astype(np.float32)


def label_map(shape, seed=0):
    """A map of the five `LABELS`."""
    volume = noise(shape, seed)
    return LABELS[np.digitize(volume, np.quantile(volume, (0.3, 0.5, 0.7, 0.85)))]


def positions(where):
    """Voxel centres of a frame, ``(D, H, W, 3)`` RAS mm."""
    return where.voxel_to_world(np.stack(np.indices(where.shape, dtype=float), axis=-1))


def to_sitk(array, where):
    """A SimpleITK image of an array (D, H, W)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(where.spacing.tolist())
    image.SetOrigin(ras_to_lps(where.origin).tolist())
    image.SetDirection((np.diag((-1.0, -1.0, 1.0)) @ where.direction).ravel().tolist())
    return image


def from_sitk(image):
    """The array (D, H, W) of a SimpleITK image."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def sitk_points(transform, points):
    """RAS points through a SimpleITK transform, RAS."""
    return ras_to_lps(np.array([transform.TransformPoint(p.tolist()) for p in ras_to_lps(points)]))


def save_field(vectors, affine, path):
    """Write a field (D, H, W, 3), LPS mm, on the grid of an affine."""
    save_displacement_blocks(np.moveaxis(vectors, -1, 0), Frame(vectors.shape[:3], affine), path)


def some_points(where, count=40, margin=0.0, seed=1):
    """Random RAS points inside a frame, or up to ``margin`` of its size beyond it."""
    part = np.random.default_rng(seed).uniform(-margin, 1 + margin, size=(count, 3))
    return where.voxel_to_world(part * (np.asarray(where.shape) - 1))
