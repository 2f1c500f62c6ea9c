"""What ``avsm register`` writes, by the readers that 3D Slicer loads files with: ITK's own, in double precision.

Slicer's transform storage node asks ``itk::TransformFileReaderTemplate<double>`` for ``.h5`` and ``.tfm`` and
``itk::ImageFileReader`` of double vectors for a displacement field; its converter knows affine, B-spline and
displacement field transforms and composites of them. The other tests read with SimpleITK and ANTs.
"""

import itk
import numpy as np
import pytest

from register_cases import register, write_pair

VECTOR = itk.Image[itk.Vector[itk.F, 3], 3]  # of double vectors ITK's Python package wraps images, but no reader
IMAGE = itk.Image[itk.D, 3]


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


def load_image(path, kind=IMAGE):
    reader = itk.ImageFileReader[kind].New()
    reader.SetFileName(str(path))
    reader.Update()
    return reader.GetOutput()


def geometry(image):
    direction = itk.array_from_matrix(image.GetDirection())
    return (
        list(image.GetLargestPossibleRegion().GetSize()), list(image.GetSpacing()), list(image.GetOrigin()), direction,
    )  # fmt: skip


def assert_same_grid(image, other):
    (size, *ours), (expected, *theirs) = geometry(image), geometry(other)
    assert size == expected
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def pull(files, transform):
    """The moving image on the fixed image's grid, by ITK's resampler, and how far it is from moved.nii.gz."""
    fixed, moving = (load_image(files[role]) for role in ("fixed", "moving"))
    resample = itk.ResampleImageFilter[IMAGE, IMAGE].New()
    resample.SetInput(moving)
    resample.SetTransform(transform)
    resample.UseReferenceImageOn()
    resample.SetReferenceImage(fixed)
    resample.SetDefaultPixelValue(float(itk.array_view_from_image(moving).min()))
    resample.Update()
    return itk.array_from_image(resample.GetOutput())


def assert_moved(files, out, transform):
    ours = itk.array_from_image(load_image(out / "moved.nii.gz"))
    theirs = pull(files, transform)
    inner = (slice(2, -2),) * 3
    assert np.abs(ours - theirs)[inner].max() < 1e-3 * np.ptp(ours)
    # Another transform would not do: the test can fail.
    assert np.abs(ours - pull(files, itk.IdentityTransform[itk.D, 3].New()))[inner].max() > 0.1 * np.ptp(ours)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("transform.h5", ["AffineTransform", "DisplacementFieldTransform"]),
        # First added, last applied: to the moving point the inverse affine, then the inverse flow.
        ("inverse_transform.h5", ["DisplacementFieldTransform", "AffineTransform"]),
    ],
)
def test_composites_hold_what_slicer_knows(run, name, kinds):
    (composite,) = load_transforms(run[1] / name)
    assert composite.GetTransformTypeAsString() == "CompositeTransform_double_3_3"
    parts = [itk.down_cast(composite.GetNthTransform(n)) for n in range(composite.GetNumberOfTransforms())]
    assert [part.GetTransformTypeAsString() for part in parts] == [f"{kind}_double_3_3" for kind in kinds]
    field = parts[kinds.index("DisplacementFieldTransform")].GetDisplacementField()
    direction = itk.array_from_matrix(field.GetDirection())
    # Slicer's grid transform takes a direction with right angles and nothing else.
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    assert np.abs(itk.array_view_from_image(field)).max() < 100  # mm


def test_composite_makes_the_moved_image(run):
    files, out = run
    assert_moved(files, out, load_transforms(out / "transform.h5")[0])


def test_displacement_field_is_a_vector_image_on_the_fixed_grid(run):
    """Offered by Slicer as a transform: three components as a vector (no time axis), LPS mm, on the fixed grid."""
    files, out = run
    io = itk.NiftiImageIO.New()
    io.SetFileName(str(out / "displacement.nii.gz"))
    io.ReadImageInformation()
    assert (io.GetNumberOfDimensions(), io.GetNumberOfComponents()) == (3, 3)
    assert io.GetPixelTypeAsString(io.GetPixelType()) == "vector"
    field = load_image(out / "displacement.nii.gz", VECTOR)
    assert_same_grid(field, load_image(files["fixed"]))
    double = itk.Image[itk.Vector[itk.D, 3], 3].New()
    double.CopyInformation(field)
    double.SetRegions(field.GetLargestPossibleRegion())
    double.Allocate()
    itk.array_view_from_image(double)[...] = itk.array_view_from_image(field)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(double)
    assert_moved(files, out, transform)
    # At voxel centres it does what the composite does, in the world's mm.
    (composite,) = load_transforms(out / "transform.h5")
    for index in ((3, 4, 5), (12, 20, 30), (22, 10, 18)):
        point = field.TransformIndexToPhysicalPoint(index)
        expected = np.subtract(composite.TransformPoint(point), point)
        np.testing.assert_allclose(list(field.GetPixel(index)), expected, atol=1e-2)
