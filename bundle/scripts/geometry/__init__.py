"""The ground: coordinate grids, affine maps, composition, warping and Jacobians, as pure tensor functions.

Words and directions, kept everywhere in this project:

* **fixed** image = the paper's target I1; **moving** image = the paper's source I0.
* The **map** φ⁻¹ lives on the fixed grid and says where in the moving image to look:
  ``moved(x) = moving(φ⁻¹(x))``. It carries points fixed → moving and warps images moving → fixed.
* Maps are tensors ``(B, 3, D, H, W)`` of **normalised coordinates**: -1 is the centre of the first voxel of an axis and
  +1 the centre of its last (corners aligned); channel ``c`` is the coordinate along array axis ``c`` (D, H, W order).
* An **affine** is ``(B, 3, 4)``, ``(A | b)``, acting on normalised coordinates: ``x_moving = A x_fixed + b``.
* A displacement is ``map - identity``. Maps are never clamped; outside its grid a map's displacement is continued from
  the nearest face, so that compositions may leave the field of view and come back.
* The paper's widths and factors are in units where the image is [0, 1]³; a length in normalised coordinates times
  `UNIT_CUBE` is a length in those units. This constant is the only place of that conversion.

Affines and maps, which networks are made of, compile under ``torch.jit.script``.
"""

from .affine import affine_map, apply_affine, compose_affines, identity_affine, invert_affine
from .grid import UNIT_CUBE, identity_map, voxels_per_unit
from .jacobian import (
    corner_jacobian_determinants,
    count_folds,
    fold_mask,
    jacobian_determinant,
    smallest_jacobian_determinant,
    std_log_jacobian,
)
from .maps import compose, compose_displacements, resize_map, resize_volume, warp
