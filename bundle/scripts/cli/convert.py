"""``avsm convert``: a transform as another tool reads it."""

from __future__ import annotations

import argparse
import os
import warnings

from ..errors import InputError
from ..settings import TOOLS
from .options import TRANSFORM_FILES, add_file, path_word

_TOLD = 0.01  # mm
HELP = "a transform as another tool reads it"
USAGE = "FILE FILE"
DESCRIPTION = (
    """\
Write transforms as another tool reads them. Several become one, in ANTs' order: the first listed acts on a point first;
inverse:IN stands for the inverse.

  read      """
    + TRANSFORM_FILES.replace("NIfTI of ITK", "NIfTI of\n            ITK")
    + """;
            elastix's TransformParameters.N.txt; FreeSurfer's .lta, .m3z and .mgz; AFNI's .aff12.1D; .x5; DICOM's
            (Deformable) Spatial Registration, .dcm; FSL's matrix of FLIRT and field or coefficients of FNIRT (need
            --fixed and --moving)
  written   ITK's .h5, .tfm and .txt (ANTs, Slicer, SimpleITK); FreeSurfer's .lta, .m3z and .mgz; FSL's .mat for
            FLIRT; AFNI's .aff12.1D; .x5; DICOM's .dcm, where --fixed and --moving are DICOM series; .nii and .nii.gz
            for the displacement field of the fixed image's grid, as ITK, ANTs, AFNI and Greedy read it. With --tool:
            elastix's .txt; the matrix of Greedy and NiftyReg, .mat or .txt; the field of FNIRT (fsl), NiftyReg or
            SPM, .nii or .nii.gz. .ome.zarr, read and written, needs pip install 'avsm[ngff]'

A field in .h5, .dcm and .ome.zarr is kept at its own nodes. Other files hold the displacement of the fixed image's
voxels, exact there; how far points between them end elsewhere is said where that is more than 0.01 mm.

Direction: files of ITK, ANTs, AFNI and Greedy carry points of the FIXED image to the MOVING image, those of FreeSurfer
and FLIRT the other way; what is written is turned round accordingly and warps the same image as before. .lta, .mat,
.txt, .tfm and .1D hold an affine only. A plain 4x4 matrix beside both images counts as FLIRT's."""
)

EPILOG = """\
examples:
  avsm convert flirt.mat affine.tfm --fixed ref.nii.gz --moving in.nii.gz
  avsm convert result/affine.tfm affine.lta --fixed fixed.nii.gz --moving moving.nii.gz
  avsm convert result/transform.h5 y_warp.nii --tool spm --fixed fixed.nii.gz
  avsm convert result/transform.h5 registration.dcm --fixed study/3 --moving study/7
  avsm convert warp.nii.gz affine.mat field.nii.gz --fixed fixed.nii.gz
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("transform", metavar="IN", nargs="+", type=path_word, help="transform file(s)")
    parser.add_argument("output", metavar="OUT", type=path_word, help="file to write")
    for role in ("fixed", "moving"):
        add_file(parser, f"--{role}", "I", f"{role} image, of which the grid is read")
    parser.add_argument("--tool", choices=TOOLS, help="whose file to write, where those of one suffix differ")


def run(options: argparse.Namespace) -> int:
    """Convert."""
    from .files import check_inputs, check_output

    images = [path for path in (options.fixed, options.moving) if path is not None]
    check_inputs([*options.transform, *images])
    from ..api import grid_of
    from ..formats.transform_files import NGFF, OUTPUTS, loss_between_voxels
    from ..storage import writing
    from ..transform import Transform

    if options.output.lower().endswith(NGFF) and os.path.exists(options.output):
        raise InputError(f"{options.output}: is there already; remove it, or give another name")
    check_output(options.output, OUTPUTS, [*options.transform, *images])
    frames = {role: grid_of(path) for role in ("fixed", "moving") if (path := getattr(options, role)) is not None}
    transform = Transform.read(*options.transform, **frames)
    with writing(options.output), transform.named(options.output):
        transform.save(options.output, **frames, tool=options.tool)
        with warnings.catch_warnings(action="ignore"):  # told already
            loss = loss_between_voxels(transform.parts, options.output, frames.get("fixed"))
    print(options.output + (f" (exact at the voxels, between them up to {loss:.2f} mm off)" if loss > _TOLD else ""))
    return 0
