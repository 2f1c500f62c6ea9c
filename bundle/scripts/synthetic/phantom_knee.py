"""A schematic right knee as implicit functions of position: the template that every phantom subject is a warp of.

Positions are millimetres in (R, A, S) order from the centre of the joint, inside the field of view of
`EXTENT_MM`. Distances are approximate signed distances, negative inside. It is anatomy only in outline; what counts
for registration is thin bright cartilage on large bones in soft tissue of other contrast.
"""

from dataclasses import dataclass

import torch

__all__ = ["EXTENT_MM", "LABELS", "Contrast", "knee_tissues"]

EXTENT_MM = (112.0, 140.0, 140.0)
"""Field of view along (R, A, S), mm, as of a sagittal DESS scan."""

LABELS = {0: "background", 1: "femoral cartilage", 2: "tibial cartilage", 3: "femur", 4: "tibia"}

CARTILAGE_MM = 4.0
CORTEX_MM = 2.0
# Width of the ramp between two tissues. It stands for the partial volume effect, and is fixed in mm so that a knee
# looks the same at all grid sizes.
EDGE_MM = 0.7


@dataclass(frozen=True)
class Contrast:
    """Signal of each tissue before bias and noise, about 0 to 1, in the manner of DESS."""

    air: float = 0.02
    fat: float = 0.68
    muscle: float = 0.38
    marrow: float = 0.55
    cortex: float = 0.10
    cartilage: float = 0.90
    meniscus: float = 0.20
    texture: float = 0.06


def _ellipsoid(x, y, z, centre, radii):
    """Distance to an ellipsoid, scaled by its gradient so that it is true to first order at the surface."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    size = torch.sqrt(u * u + v * v + w * w).clamp_min_(1e-6)
    slope = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2).clamp_min_(1e-7)
    return size * (size - 1) / slope


def _tube(x, y, centre, radii):
    """Distance to an upright elliptic cylinder whose centre and radii may vary with height."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    size = torch.sqrt(u * u + v * v).clamp_min_(1e-6)
    slope = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2).clamp_min_(1e-7)
    return size * (size - 1) / slope


def _join(a, b, width):
    """Smooth minimum: the union of two bodies with a fillet of about `width` mm."""
    gap = (width - (a - b).abs()).clamp_min_(0)
    return torch.minimum(a, b) - gap * gap / (4 * width)


def _meet(a, b, width):
    """Smooth maximum: the common part of two bodies with a rounded edge."""
    return -_join(-a, -b, width)


def _femur(x, y, z):
    shaft = _tube(x, y, (1.0, 2.0), (14.5, 13.5))
    shaft = torch.maximum(shaft, 26.0 - z)
    flare = _ellipsoid(x, y, z, (0.0, 2.0, 27.0), (33.0, 20.0, 21.0))
    medial = _ellipsoid(x, y, z, (-21.0, -6.0, 19.0), (15.0, 29.0, 19.0))
    lateral = _ellipsoid(x, y, z, (21.0, -4.0, 18.5), (16.0, 27.0, 18.0))
    # The notch keeps the condyles apart below and behind; the trochlear groove is the dent in front.
    notch = _ellipsoid(x, y, z, (0.0, -16.0, 4.0), (7.5, 24.0, 19.0))
    body = _join(_join(shaft, flare, 16.0), _join(medial, lateral, 3.0), 7.0)
    return _meet(body, -notch, 4.0)


def _tibia(x, y, z):
    depth = (-z - 8.0).clamp_min_(0)
    width = 13.0 + 24.0 * torch.exp(-((depth / 21.0) ** 2))
    thick = 13.0 + 13.0 * torch.exp(-((depth / 19.0) ** 2))
    shaft = _tube(x, y, (0.0, -4.0 + 2.0 * (width - 13.0) / 24.0), (width, thick))
    # The plateau sags a little under each condyle, and the eminence stands between them.
    dents = torch.exp(-(((x.abs() - 20.0) / 10.0) ** 2) - ((y + 4.0) / 16.0) ** 2)
    ridge = torch.exp(-((x / 6.0) ** 2) - ((y + 5.0) / 10.0) ** 2)
    return _meet(shaft, z + 7.0 + 2.0 * dents - 5.0 * ridge, 5.0)


def knee_tissues(points: torch.Tensor, contrast: Contrast) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and label of the template knee.

    Args:
        points: positions (3, N), mm, in (R, A, S) order from the centre of the joint.
        contrast: signal of each tissue.

    Returns:
        signal (N,) in the type of the points, and label (N,) uint8, see `LABELS`.
    """
    x, y, z = points
    femur, tibia = _femur(x, y, z), _tibia(x, y, z)

    # Joint cartilage: a layer on each bone, cut off where the joint surface ends.
    notch = 9.0 - x.abs() + 0.9 * (y - 4.0).clamp_min(0)
    femoral_area = _meet(_meet(z - 20.0 - 0.35 * y.clamp_min(0), (-40.0 - y), 3.0), torch.minimum(notch, 12.0 - y), 3.0)
    femoral = torch.maximum(_meet(femur - CARTILAGE_MM, femoral_area, 2.0), -femur)
    compartments = torch.minimum(_tube(x, y, (-20.0, -4.0), (15.0, 20.0)), _tube(x, y, (20.0, -4.0), (15.0, 19.0)))
    tibial = torch.maximum(_meet(tibia - CARTILAGE_MM, compartments, 2.0), torch.maximum(-tibia, -13.0 - z))
    tibial = torch.maximum(tibial, -torch.minimum(femur, femoral))
    rim = torch.maximum(z - 4.0, -5.5 - z)
    meniscus = torch.maximum(
        torch.maximum((_tube(x, y, (0.0, -4.0), (34.0, 25.0)) + 4.0).abs() - 5.0, rim), -x.abs() + 6
    )

    patella = _ellipsoid(x, y, z, (1.0, 38.0, 22.0), (20.0, 8.5, 19.0))
    patellar = torch.maximum(
        _ellipsoid(x, y, z, (1.0, 37.0, 22.0), (18.0, 11.5, 15.0)), torch.maximum(-patella, y - 37.0)
    )
    tendon = torch.maximum(((y - 43.0 - 0.10 * z).abs() - 2.2), torch.maximum(x.abs() - 13.0, -(z + 38.0)))

    skin = _tube(x, y, (0.0, 0.0), (51.0, 56.0 + 0.06 * z))
    fascia = skin + 8.0
    # Muscle fills the back and the sides inside the fascia; in front of the joint lies the fat pad.
    pad = _ellipsoid(x, y, z, (0.0, 30.0, -6.0), (27.0, 17.0, 22.0))
    fossa = _ellipsoid(x, y, z, (0.0, -34.0, 12.0), (11.0, 12.0, 42.0))
    muscle = torch.maximum(fascia, -torch.minimum(pad, fossa))
    muscle = torch.maximum(muscle, 1.2 - (x + 3.0 - 0.1 * y).abs())

    grain = torch.sin(0.21 * x + 0.13 * y + 1.0) * torch.sin(0.17 * z - 0.11 * y) * contrast.texture
    signal = torch.full_like(x, contrast.air)
    for distance, value in (
        (skin, contrast.fat),
        (muscle, contrast.muscle + grain),
        (tendon, contrast.cortex),
        (meniscus, contrast.meniscus),
        (patellar, contrast.cartilage),
        (tibial, contrast.cartilage),
        (femoral, contrast.cartilage),
        (torch.minimum(patella, torch.minimum(tibia, femur)), contrast.cortex),
        (torch.minimum(patella, torch.minimum(tibia, femur)) + CORTEX_MM, contrast.marrow + grain),
    ):
        signal += torch.sigmoid(distance / -EDGE_MM) * (value - signal)

    label = torch.zeros_like(x, dtype=torch.uint8)
    for value, distance in ((2, tibial), (1, femoral), (4, tibia), (3, femur)):
        label[distance < 0] = value
    return signal, label
