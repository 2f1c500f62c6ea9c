"""What ``avsm register`` writes, by the readers that 3D Slicer loads files with: ITK's own, in double precision.

Slicer's transform storage node asks ``itk::TransformFileReaderTemplate<double>`` for ``.h5`` and ``.tfm`` and
``itk::ImageFileReader`` of double vectors for a displacement field; its converter knows affine, B-spline and
displacement field transforms and composites of them. That both move the image alike: test_run.py, by SimpleITK, ANTs.
"""

import itk
import numpy as np
import pytest

from register_cases import register, write_pair

VECTOR = itk.Image[itk.Vector[itk.F, 3], 3]  # of double vectors ITK's Python package wraps images, but no reader


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slicer")
    files = write_pair(folder, "other sizes, spacings and axes")
    register(files, folder / "out", "--no-report")
    return files, folder / "out"


def load_transforms(path):
    """The transforms of a file, each as its own class."""
    reader = itk.TransformFileReaderTemplate[itk.D].New()
    reader.SetFileName(str(path))
    reader.Update()
    found = reader.GetTransformList()
    return [itk.down_cast(found[index]) for index in range(len(found))]


@pytest.mark.parametrize("name", ["transform.h5", "inverse_transform.h5"])
def test_composites_hold_what_slicer_knows(run, name):
    kinds = ["AffineTransform", "DisplacementFieldTransform"]  # first added, last applied
    (composite,) = load_transforms(run[1] / name)
    assert composite.GetTransformTypeAsString() == "CompositeTransform_double_3_3"
    parts = [itk.down_cast(composite.GetNthTransform(n)) for n in range(composite.GetNumberOfTransforms())]
    assert [part.GetTransformTypeAsString() for part in parts] == [f"{kind}_double_3_3" for kind in kinds]
    field = parts[kinds.index("DisplacementFieldTransform")].GetDisplacementField()
    direction = itk.array_from_matrix(field.GetDirection())
    # Slicer's grid transform takes a direction with right angles and nothing else.
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    assert np.abs(itk.array_view_from_image(field)).max() < 100  # mm


def test_displacement_field_is_a_vector_image_on_the_fixed_grid(run):
    """Offered by Slicer as a transform: three components as a vector (no time axis), LPS mm, on the fixed grid."""
    _, out = run
    io = itk.NiftiImageIO.New()
    io.SetFileName(str(out / "displacement.nii.gz"))
    io.ReadImageInformation()
    assert (io.GetNumberOfDimensions(), io.GetNumberOfComponents()) == (3, 3)
    assert io.GetPixelTypeAsString(io.GetPixelType()) == "vector"
    reader = itk.ImageFileReader[VECTOR].New()
    reader.SetFileName(str(out / "displacement.nii.gz"))
    reader.Update()
    field, (composite,) = reader.GetOutput(), load_transforms(out / "transform.h5")
    # At voxel centres it does what the composite does, in the world's mm.
    for index in ((3, 4, 5), (12, 20, 30), (22, 10, 18)):
        point = field.TransformIndexToPhysicalPoint(index)
        expected = np.subtract(composite.TransformPoint(point), point)
        np.testing.assert_allclose(list(field.GetPixel(index)), expected, atol=1e-2)
